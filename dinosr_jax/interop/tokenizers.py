"""Hugging Face's tokenizer files of a recogniser: their symbols to ours, and ours to theirs.

A row of the output layer is a symbol. Theirs may be in any order, with the blank as the padding
token; ours begin with fairseq's four special ones, the blank first.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.errors import UserError
from dinosr_jax.interop.huggingface import read_json, write_json

BOUNDARY = "|"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the blank first, as fairseq numbers them
_THEIRS = ("<pad>", "<s>", "</s>", "<unk>")  # the same rows, as Hugging Face calls them
_NEVER = -1e4  # logit of a special symbol that a tokenizer lacks


class Tokenizer(NamedTuple):
    """Our symbols, and the row of theirs that each has; -1 where it has none."""

    symbols: tuple[str, ...]
    rows: list[int]
    notes: list[str]


def read(folder: Path, fields: Mapping[str, Any], *, size: int) -> Tokenizer:
    """Reads `vocab.json`, the tokens added to it, and which of them are special.

    `fields` are those of config.json, whose `pad_token_id` is the blank; `size` rows has lm_head.

    Raises:
      UserError: They are not the names of all rows.
    """
    settings = _settings(folder)
    names = _names(folder, settings, size)
    blank = fields.get("pad_token_id", 0)
    if len(names) != size or type(blank) is not int or blank not in names:
        raise UserError(
            f"{folder}/vocab.json: found the names of {len(names)} symbols, expected one for each "
            f"of the {size} rows of lm_head, and among them pad_token_id, which is {blank!r}"
        )
    row_of = {name: row for row, name in names.items() if row != blank}
    tokens = (settings.get(f"{kind}_token") for kind in ("bos", "eos", "unk"))
    special = [blank]
    for name, usual in zip(tokens, _THEIRS[1:], strict=True):
        special.append(row_of.get(name if isinstance(name, str) else usual, -1))
    rest = [row for row in sorted(names) if row not in special]
    delimiter = settings.get("word_delimiter_token", BOUNDARY)
    symbols = (*SPECIAL, *(BOUNDARY if names[r] == delimiter else names[r] for r in rest))
    twice = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
    if twice:
        raise UserError(
            f"{folder}/vocab.json: {twice[0]!r} is a symbol, but tokenizer_config.json says that "
            "another one has its part"
        )
    notes = []
    if BOUNDARY not in symbols and settings.get("tokenizer_class") == "Wav2Vec2CTCTokenizer":
        notes.append("its symbols have no word delimiter: a transcript has spaces between all")
    return Tokenizer(symbols, [*special, *rest], notes)


def _settings(folder: Path) -> dict[str, Any]:
    """Of tokenizer_config.json, over special_tokens_map.json; tokens as plain strings."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    plain = lambda v: v["content"] if isinstance(v, dict) and "content" in v else v
    return {name: plain(value) for name, value in settings.items()}


def _names(folder: Path, settings: Mapping[str, Any], size: int) -> dict[int, str]:
    """Row -> symbol; added tokens without a row are left out."""
    names: dict[int, str] = {}
    for number, name in _numbered(folder / "vocab.json"):
        if not 0 <= number < size or number in names:
            raise UserError(
                f"{folder}/vocab.json: {name!r} is number {number}, expected one of its own from "
                f"0 to {size - 1}"
            )
        names[number] = name
    added = list(_numbered(folder / "added_tokens.json"))
    decoder = settings.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and number.isdecimal():
            added.append((int(number), str(token.get("content"))))
    for number, name in added:
        if 0 <= number < size:
            names.setdefault(number, name)
    return names


def _numbered(file: Path) -> Iterator[tuple[int, str]]:
    for name, number in (read_json(file) if file.is_file() else {}).items():
        if type(number) is not int:
            raise UserError(f"{file}: expected symbols and numbers, found {name!r}: {number!r}")
        yield number, name


def reorder(tensors: dict[str, np.ndarray], rows: list[int]) -> dict[str, np.ndarray]:
    """A folder's tensors with the output layer's rows in our order; what has none never wins."""
    if rows == list(range(len(rows))):
        return tensors
    there = np.asarray(rows) >= 0
    changed = {}
    for name, missing in (("lm_head.weight", 0), ("lm_head.bias", _NEVER)):
        value = tensors.get(name)
        if value is None or value.ndim == 0 or len(value) != sum(there):
            continue  # an error, which is named where all are
        taken = value[np.maximum(rows, 0)]
        shape = (-1,) + (1,) * (value.ndim - 1)
        changed[name] = np.where(there.reshape(shape), taken, missing).astype(value.dtype)
    return tensors | changed


def write(folder: Path, symbols: tuple[str, ...]) -> None:
    """Writes vocab.json and the configurations of tokenizer and processor.

    The delimiter `|` ends words of characters; phones are separated by spaces
    (Wav2Vec2PhonemeCTCTokenizer, which phonemizes nothing here). The special symbols come first.
    """
    names = [*_THEIRS, *symbols[len(SPECIAL) :]]
    write_json(folder / "vocab.json", {name: number for number, name in enumerate(names)})
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), _THEIRS, strict=True))
    write_json(folder / "special_tokens_map.json", special)
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
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "processor_config.json", {"processor_class": "Wav2Vec2Processor"})
