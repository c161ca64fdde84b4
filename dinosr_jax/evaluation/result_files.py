"""Files of results: one JSON object of one kind of figure, with all that reproduces it.

The rows say of which system and layer a figure is; the rest says how it was found.
"""

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from dinosr_jax import __version__
from dinosr_jax.errors import UserError
from dinosr_jax.inference import outputs
from dinosr_jax.inference.recordings import printable

Kind = Literal["units", "abx", "frames", "recognition", "asr", "keywords", "intent", "slots"]
System = Literal["codebook", "head", "kmeans", "mfcc", "untrained"]
WEIGHTED = "weighted"  # layer of the learned sum of all layers
_METRICS: Mapping[str, tuple[str, ...]] = {
    "units": ("pnmi", "phone_purity", "cluster_purity", "perplexity", "units_in_use", "num_units"),
    "abx": ("error", "speaker", "context", "cells"),
    "frames": ("accuracy",),
    "recognition": ("per", "learning_rate"),
    "asr": ("wer", "cer", "learning_rate"),
    "keywords": ("accuracy", "learning_rate"),
    "intent": ("accuracy", "learning_rate"),
    "slots": ("f1", "cer", "learning_rate"),
}
_TEXTS = ("command", "checkpoint", "data", "rule")


class Validated(NamedTuple):
    """The layer whose codebook was best on held-out speech while training, and its split."""

    layer: int
    split: str


class ResultError(UserError):
    """A file of results cannot be written or read; the message names file and field."""


def write_results(
    path: str | Path, *, kind: Kind, rows: Iterable[Mapping[str, Any]], **fields: Any
) -> None:
    """Writes a file of results, whole or not at all; date and versions are added.

    Args:
      path: RUN/evaluation/NAME.json; replaced where it is there.
      kind: What was measured; says which metrics every row has.
      rows: Of each, `system` (see `System`), `layer` (from 1; 0 is the encoder's input; None where
        there is none; 'weighted' for the learned sum) and the metrics of the kind.
      **fields: `command` that reproduces it, `checkpoint`, `step`, `data` (what, utterances,
        minutes, speakers) and `rule` (of alignment or slicing), each one line of text; more, such
        as `title`, or `phones`: the labels of the rows of `counts`.

    Raises:
      ResultError: A field or a metric is missing, or is no finite number.
      OutputError: The disk is full, or the folder cannot be written to.
    """
    today = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"kind": kind, "date": today, "versions": versions(), **fields, "rows": list(rows)}
    record["checkpoint"] = printable(str(record.get("checkpoint", "")))
    try:
        plain = json.loads(json.dumps(record, default=_plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ResultError(
            f"{path}: {kind}: {error}; expected finite numbers, texts, lists"
        ) from None
    _check(plain, name=str(path))
    outputs.write_text(Path(path), json.dumps(plain, ensure_ascii=False) + "\n")


def read_result(path: Path) -> dict[str, Any] | None:
    """Reads one file of results; None where it is of something else, without a `kind`.

    Returns the record with its path in `path`; raises ResultError where it is damaged, or lacks a
    field.
    """
    name = printable(str(path))
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(
            f"{name}: cannot be read as JSON ({error}); delete it and evaluate again"
        ) from None
    if not isinstance(record, dict) or "kind" not in record:
        return None
    _check(record, name=name)
    return record | {"path": name}


def versions() -> dict[str, str]:
    """Versions of this program, of Python and of the libraries that compute."""
    libraries = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    return {"dinosr_jax": __version__, "python": platform.python_version(), **libraries}


def _plain(value: Any) -> Any:
    """Arrays and numbers of NumPy as JSON has them."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Path):
        return printable(str(value))
    raise TypeError(f"found {type(value).__name__}")


def _check(record: Mapping[str, Any], *, name: str) -> None:
    """Raises ResultError where a field is not what it is agreed to be."""

    def need(holds: bool, field: str, found: Any, expected: str) -> None:
        if not holds:
            raise ResultError(f"{name}: {field}: found {found!r}, expected {expected}")

    kind = record["kind"]
    need(kind in get_args(Kind), "kind", kind, "one of " + ", ".join(get_args(Kind)))
    for field in _TEXTS:
        text = record.get(field)
        need(isinstance(text, str) and "\n" not in text, field, text, "one line of text")
    step = record.get("step", "nothing")
    need(step is None or type(step) is int, "step", step, "a whole number, or null: not known")
    rows = record.get("rows")
    need(isinstance(rows, list) and bool(rows), "rows", rows, "a list with one row at least")
    for i, row in enumerate(rows):
        need(isinstance(row, dict), f"rows[{i}]", row, "an object")
        system, layer = row.get("system"), row.get("layer")
        systems = get_args(System)
        need(system in systems, f"rows[{i}].system", system, "one of " + ", ".join(systems))
        known = layer is None or layer == WEIGHTED or (type(layer) is int and layer >= 0)
        need(known, f"rows[{i}].layer", layer, "a number, null or 'weighted'")
        for metric in _METRICS[kind]:
            need(metric in row, f"rows[{i}].{metric}", None, f"what every row of {kind} has")
