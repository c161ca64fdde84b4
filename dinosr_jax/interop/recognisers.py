"""Fine-tuned recognisers of other projects: fairseq's `wav2vec_ctc`, Hugging Face's ForCTC.

fairseq keeps the network under `w2v_encoder.w2v_model.` and the output layer as `w2v_encoder.proj`;
its dictionary is a file of its own. Hugging Face's is in the folder (`tokenizers`).
"""

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from dinosr_jax.errors import UserError
from dinosr_jax.interop import fairseq, fairseq_files, naming
from dinosr_jax.interop.fairseq import PROJ, Place
from dinosr_jax.interop.shapes import ASSUMED, infer_config
from dinosr_jax.interop.tokenizers import SPECIAL
from dinosr_jax.recipes import finetuning_recipe

FAIRSEQ_PREFIX = "w2v_encoder."
_NETWORK = "w2v_model."
_LETTERS = (*SPECIAL, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
_RECIPE = {  # fields of fairseq's `wav2vec_ctc`
    "freeze_finetune_updates": "ctc.freeze_steps",
    "mask_prob": "mask.prob",
    "mask_length": "mask.length",
    "mask_channel_prob": "ctc.channel_mask_prob",
    "mask_channel_length": "ctc.channel_mask_length",
    "dropout": "model.dropout",
    "attention_dropout": "model.attention_dropout",
    "activation_dropout": "model.activation_dropout",
    "layerdrop": "model.layerdrop",
}
_MASKS = ("mask.prob", "ctc.channel_mask_prob")
# Fields of its w2v_args that only pre-training needs
_OF_PRETRAINING = ("discrete", "instance_norm_target_layer")
_LEFT_BY_PRETRAINING = ("heads.", "_codebook", "_ema", "final_proj.", "pre_encoder", "_pre_encoder")
NOT_NORMALISED = "it was trained on waveforms that were not normalised; here each one is"


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
    """Configuration of a `wav2vec_ctc` checkpoint; the network's own fields are in `w2v_args`.

    `heads` and `symbols` are those that are given; without symbols, 32 are taken for fairseq's
    letters. `notes` gets a line for everything that was inferred.

    Raises:
      UserError: The dictionary is not known, or has another size; or tensors are missing.
    """
    outer = _section(cfg, "model") or cfg
    inner = _section(outer, "w2v_args") or _section(cfg, "w2v_args")
    fields = _section(inner, "model") or inner
    fields = {k: v for k, v in fields.items() if v is not None and k not in _OF_PRETRAINING}
    bare = {n.removeprefix(FAIRSEQ_PREFIX).removeprefix(_NETWORK): v for n, v in tensors.items()}
    rows = bare.get(f"{PROJ}.bias")
    if rows is None:
        raise UserError(f"{FAIRSEQ_PREFIX}{PROJ}.bias: missing; expected a wav2vec_ctc checkpoint")
    # a recogniser has no codebooks: any numbers that the configuration may have
    fields |= {"average_top_k_layers": 1, "codebook_size": 1}
    network = infer_config(bare, lambda name: name, heads, notes, fields=fields)
    config = recogniser(network, _check_symbols(symbols, rows.size, notes))
    taken = _add_recipe(config, outer) + fairseq.add_recipe(config, cfg)
    notes.append(f"recipe: {', '.join(taken)} of its configuration" if taken else "recipe: ours")
    if _section(cfg, "task").get("normalize", outer.get("normalize")) is False:
        notes.append(NOT_NORMALISED)
    return config


def used_tensors(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors of a `wav2vec_ctc` checkpoint without those of pre-training, and their names."""
    start = f"{FAIRSEQ_PREFIX}{_NETWORK}"
    left = tuple(f"{start}{part}" for part in _LEFT_BY_PRETRAINING)
    unused = [name for name in tensors if name.startswith(left)]
    return {name: value for name, value in tensors.items() if name not in unused}, unused


def _section(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = fields.get(name)
    return section if isinstance(section, dict) else {}


def _check_symbols(symbols: tuple[str, ...] | None, size: int, notes: list[str]) -> tuple[str, ...]:
    if symbols is None:
        if size != len(_LETTERS):
            raise UserError(
                f"its output layer has {size} symbols, and fairseq's checkpoints do not hold their "
                "names: give the dictionary, python -m dinosr_jax import CHECKPOINT "
                "--vocabulary=dict.ltr.txt"
            )
        notes.append(f"{ASSUMED} fairseq's 32 letters (--vocabulary=dict.ltr.txt says others)")
        return _LETTERS
    if len(symbols) != size:
        raise UserError(
            f"--vocabulary: found {len(symbols)} symbols with the four special ones, the output "
            f"layer has {size}"
        )
    return symbols


def recogniser(
    network: ml_collections.ConfigDict, symbols: tuple[str, ...]
) -> ml_collections.ConfigDict:
    """The recipe of fine-tuning with the configuration of a network; `symbols` are in our order."""
    config = finetuning_recipe()
    config.compute_dtype = "float32"
    rates = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")
    kept = {name: config.model[name] for name in rates}
    config.model = network.model
    config.model.update(kept)
    config.ctc.symbols = symbols
    return config


def _add_recipe(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> list[str]:
    """Copies masks and dropout of a `wav2vec_ctc` configuration into ours."""
    taken = []
    for theirs, ours in _RECIPE.items():
        value, (section, field) = fields.get(theirs), ours.split(".")
        if ours in _MASKS and fields.get("apply_mask") is False:
            value = 0.0
        if isinstance(value, int | float) and not isinstance(value, bool):
            config[section][field] = type(config[section][field])(value)
            taken.append(ours)
    return taken


def fairseq_fields(config: Any) -> dict[str, Any]:
    """The inverse of `fairseq_config`: a `cfg` of plain values, without dictionary."""
    recipe = {}
    for theirs, ours in _RECIPE.items():
        section, field = ours.split(".")
        recipe[theirs] = config[section][field]
    network = fairseq_files.network(config)
    # no heads and codebooks; fairseq masks by the fields of the network
    masks = {name: recipe[name] for name in ("mask_channel_prob", "mask_channel_length")}
    network["model"] |= {"discrete": False, **masks}
    model = {"_name": "wav2vec_ctc", "normalize": True, "apply_mask": True, "w2v_args": network}
    task = {"_name": "audio_finetuning", "data": "", "labels": "ltr", "normalize": True}
    return {"task": task, "model": model | recipe}


def huggingface_fields(symbols: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a recogniser's config.json beside those of the network."""
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
    """Text of fairseq's dict.ltr.txt: a symbol and a count a line, without the special ones."""
    others = symbols[len(SPECIAL) :]
    return "".join(f"{symbol} {len(others) - k}\n" for k, symbol in enumerate(others))
