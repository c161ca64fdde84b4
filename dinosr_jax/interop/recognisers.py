"""Fine-tuned recognisers of other projects: fairseq's `wav2vec_ctc`, Hugging Face's ForCTC.

fairseq keeps the network under `w2v_encoder.w2v_model.` and the output layer as `w2v_encoder.proj`;
its dictionary is a file of its own. Hugging Face has the blank as `<pad>`, which is number 0 of the
tokenizer files written here, and `vocab.json` in the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from dinosr_jax.interop import naming
from dinosr_jax.interop.fairseq import PROJ, Place
from dinosr_jax.interop.shapes import infer_config
from dinosr_jax.recipes import finetuning_recipe

FAIRSEQ_PREFIX = "w2v_encoder."
_NETWORK = "w2v_model."
BOUNDARY = "|"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the blank first, as fairseq numbers them
_THEIRS = ("<pad>", "<s>", "</s>", "<unk>")  # the same rows, as Hugging Face calls them
_LETTERS = (*SPECIAL, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
_NEVER = -1e4  # logit of a special symbol that a tokenizer lacks


def fairseq_place(name: str) -> Place:
    """Where fairseq's recogniser has a tensor, by its name in the pre-trained network."""
    inside = name if name.startswith(f"{PROJ}.") else f"{_NETWORK}{name}"
    return Place(f"{FAIRSEQ_PREFIX}{inside}")


def huggingface_place(name: str) -> Place:
    """Where `Data2VecAudioForCTC` has it."""
    if name.startswith(f"{PROJ}."):
        return Place(f"lm_head.{name.removeprefix(f'{PROJ}.')}")
    return Place(f"data2vec_audio.{naming.huggingface(name)}")


def fairseq_config(
    tensors: Mapping[str, np.ndarray],
    cfg: Mapping[str, Any],
    *,
    heads: int | None,
    symbols: tuple[str, ...] | None,
    notes: list[str],
) -> ml_collections.ConfigDict:
    """Configuration of a `wav2vec_ctc` checkpoint.

    Args:
      tensors: By fairseq's names, with their prefix.
      cfg: Its `cfg` or `args`; the network's own is in `w2v_args`.
      heads: Attention heads, where a person says them.
      symbols: Of its dictionary, or None: 32 are taken for fairseq's letters.
      notes: Gets a line for everything that was inferred.

    Raises:
      ValueError: The dictionary is not known, or has another size; or tensors are missing.
    """
    inner = cfg.get("w2v_args") or (cfg.get("model") or {}).get("w2v_args") or {}
    fields = inner.get("model") if isinstance(inner.get("model"), dict) else inner
    bare = {n.removeprefix(FAIRSEQ_PREFIX).removeprefix(_NETWORK): v for n, v in tensors.items()}
    layers = sum(n.endswith(".fc1.weight") for n in bare)
    said = {"average_top_k_layers": min(8, max(layers, 1)), "codebook_size": 256, **fields}
    said["average_top_k_layers"] = min(said["average_top_k_layers"], max(layers, 1))
    found = infer_config(bare, lambda name: name, heads, notes, said=said)
    rows = bare.get(f"{PROJ}.bias")
    if rows is None:
        raise ValueError(f"{FAIRSEQ_PREFIX}{PROJ}.bias: missing; expected a wav2vec_ctc checkpoint")
    return _recogniser(found, _check_symbols(symbols, rows.size, notes))


def _check_symbols(symbols: tuple[str, ...] | None, size: int, notes: list[str]) -> tuple[str, ...]:
    if symbols is None:
        if size != len(_LETTERS):
            raise ValueError(
                f"its output layer has {size} symbols, and fairseq's checkpoints do not hold their "
                "names: give the dictionary, --vocabulary=dict.ltr.txt"
            )
        notes.append("ASSUMED fairseq's 32 letters (--vocabulary=dict.ltr.txt says others)")
        return _LETTERS
    if len(symbols) != size:
        raise ValueError(
            f"--vocabulary: found {len(symbols)} symbols with the four special ones, the output "
            f"layer has {size}"
        )
    return symbols


def _recogniser(found: ml_collections.ConfigDict, symbols: tuple[str, ...]) -> Any:
    """The recipe of fine-tuning with the structure of a network."""
    config = finetuning_recipe()
    config.compute_dtype = "float32"
    rates = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")
    kept = {name: config.model[name] for name in rates}
    config.model = found.model
    config.model.update(kept)
    config.ctc.symbols = symbols
    return config


def huggingface_config(
    found: ml_collections.ConfigDict, symbols: tuple[str, ...]
) -> ml_collections.ConfigDict:
    """Configuration of a `Data2VecAudioForCTC` folder of somebody else's."""
    return _recogniser(found, symbols)


def read_tokenizer(path: Path, fields: Mapping[str, Any]) -> tuple[tuple[str, ...], list[int]]:
    """Symbols of a folder's `vocab.json` in our order, and the row of each (-1: it has none).

    Args:
      path: The folder.
      fields: Its config.json; `pad_token_id` is the blank.

    Raises:
      ValueError: vocab.json is missing, or is not a mapping of symbols to all rows.
      OSError: It cannot be read.
    """
    file = path / "vocab.json"
    size, blank = fields.get("vocab_size", 32), fields.get("pad_token_id", 0)
    if not file.is_file():
        raise ValueError(f"{path}: a recogniser without vocab.json: its symbols are not known")
    try:
        numbers = json.loads(file.read_text(encoding="utf-8"))
        names = {int(number): str(name) for name, number in numbers.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{file}: expected symbols and their numbers ({error})") from None
    if sorted(names) != list(range(size)) or blank not in names:
        raise ValueError(
            f"{file}: found {len(names)} symbols, expected the numbers 0 to {size - 1}, one of "
            f"them pad_token_id {blank}"
        )
    settings = path / "tokenizer_config.json"
    told = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    told = {k: v.get("content") if isinstance(v, dict) else v for k, v in told.items()}
    wanted = [
        told.get(f"{kind}_token", name)
        for kind, name in zip(("bos", "eos", "unk"), ("<s>", "</s>", "<unk>"), strict=True)
    ]
    row_of = {name: number for number, name in names.items() if number != blank}
    special = [blank, *(row_of.get(name, -1) for name in wanted)]
    others = [number for number in sorted(names) if number not in special]
    delimiter = told.get("word_delimiter_token", BOUNDARY)
    rename = {delimiter: BOUNDARY}
    symbols = tuple(rename.get(names[number], names[number]) for number in others)
    return (*SPECIAL, *symbols), [*special, *others]


def reorder(tensors: dict[str, np.ndarray], rows: list[int]) -> dict[str, np.ndarray]:
    """A folder's tensors with the output layer's rows in our order; what has none never wins."""
    if rows == list(range(len(rows))):
        return tensors
    weight, bias = tensors["lm_head.weight"], tensors["lm_head.bias"]
    take = [max(row, 0) for row in rows]
    there = np.asarray(rows) >= 0
    return tensors | {
        "lm_head.weight": np.where(there[:, None], weight[take], 0).astype(weight.dtype),
        "lm_head.bias": np.where(there, bias[take], _NEVER).astype(bias.dtype),
    }


def write_tokenizer(folder: Path, symbols: tuple[str, ...]) -> None:
    """Writes vocab.json and the configurations of tokenizer and processor.

    Words of characters are told by the delimiter `|`; phones, which have none, by spaces
    (Wav2Vec2PhonemeCTCTokenizer, which phonemizes nothing here).
    """
    write = lambda name, value: (folder / name).write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    names = [*_THEIRS, *symbols[len(SPECIAL) :]]
    write("vocab.json", {name: number for number, name in enumerate(names)})
    roles = zip(("pad_token", "bos_token", "eos_token", "unk_token"), _THEIRS, strict=True)
    special = dict(roles)
    write("special_tokens_map.json", special)
    characters = BOUNDARY in symbols
    kind = "Wav2Vec2CTCTokenizer" if characters else "Wav2Vec2PhonemeCTCTokenizer"
    settings = special | {
        "tokenizer_class": kind,
        "processor_class": "Wav2Vec2Processor",
        "do_lower_case": False,
        "clean_up_tokenization_spaces": False,
        "replace_word_delimiter_char": " ",
    }
    if characters:
        settings["word_delimiter_token"] = BOUNDARY
    else:
        settings |= {"do_phonemize": False, "phone_delimiter_token": " "}
        settings |= {"word_delimiter_token": None}
    write("tokenizer_config.json", settings)
    write("processor_config.json", {"processor_class": "Wav2Vec2Processor"})


def fields_of(symbols: tuple[str, ...]) -> dict[str, Any]:
    """What config.json of a recogniser says beside the network's fields."""
    return {
        "architectures": ["Data2VecAudioForCTC"],
        "vocab_size": len(symbols),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "ctc_loss_reduction": "sum",
        "ctc_zero_infinity": True,
    }


def dictionary_text(symbols: tuple[str, ...]) -> str:
    """Fairseq's dict.ltr.txt: a symbol and a count a line, in order, without the special ones."""
    others = symbols[len(SPECIAL) :]
    return "".join(f"{symbol} {len(others) - k}\n" for k, symbol in enumerate(others))
