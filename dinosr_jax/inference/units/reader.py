"""Reads files of units, one line an utterance: ours, and those of other tools.

A line is a JSON object, or plain: name, tab, units with spaces between, one a frame. In an object
the name is in `file` (ours, discophon), `name` (spidr), `fileid` (minimal-hubert) or `audio`
(fastabx). `units` are one a frame; with `durations`, in frames, one a run. What `units` says beside
its file (STEM.stats.json) is read with it.

Shapes: T frames, R runs of equal units.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data.phones.tables import id_of, parse_object
from dinosr_jax.data.text_files import TextError, read_text

DEFAULT_SECONDS = 0.02
_LAYER = re.compile(r"-layer(\d+)(?=(_\d+_\d+)?$)")
_PLAIN, _NAMELESS = re.compile(r"[^\t]+\t[0-9 ]*"), re.compile(r"[0-9 ]+")
_MAX_DIGITS = 18
_MAX_UNITS, _MAX_FRAMES = 100_000, 10_000_000


class UnitFile(NamedTuple):
    """Units of utterances, [T] each, and what is known of them.

    `num_units` is K; `known` says where it is from: 'stats' (the file beside it), 'given', or
    'largest' (the largest unit, plus 1). `layer`, `source`, `step`: None, and `checkpoint` empty,
    where nothing says them.
    """

    path: Path
    utterances: Mapping[str, np.ndarray]
    num_units: int
    known: str
    unit_seconds: float
    layer: int | None
    source: str | None
    checkpoint: str
    step: int | None


def read_units(
    path: str | Path, *, num_units: int | None = None, unit_seconds: float | None = None
) -> UnitFile:
    """Reads a file of units.

    Args:
      path: JSON lines or plain ones, gzip or not.
      num_units: K; None is what the file beside it says, else the largest unit, plus 1.
      unit_seconds: From a unit to the next; None is what the file beside it says, else 20 ms.

    Returns:
      The units, in the order of the file.

    Raises:
      TextError: It is no such file, an utterance is there twice, or what is given contradicts it.
    """
    path = Path(path)
    utterances, lines = {}, {}
    rows = [(n, line) for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    plain = _is_plain(path, *rows[0])
    for number, line in rows:
        if plain:
            id_, entry = _parse_plain(line, path, number)
        else:
            entry = parse_object(line, path=path, number=number)
            id_ = id_of(entry, path, number)
        if id_ in utterances:
            raise TextError(
                f"{path}: line {number}: found {id_}, which is in line {lines[id_]} too; expected "
                "every utterance once"
            )
        utterances[id_], lines[id_] = _units_of(entry, f"{path}: line {number}: {id_}"), number
    said = _beside(path)
    if plain and said["runs"]:
        raise TextError(
            f"{path}: found one unit a run, without durations, as {said['path']} says; expected "
            "one a frame: write it without --deduplicate, or with --format=jsonl"
        )
    largest = max(utterances, key=lambda id_: utterances[id_].max(initial=-1))
    least = int(utterances[largest].max(initial=0)) + 1
    known = "given" if num_units is not None else "stats" if said["num_units"] else "largest"
    num_units = _agreed("num_units", num_units, said["num_units"], said["path"]) or least
    if not least <= num_units <= _MAX_UNITS:
        raise TextError(
            f"{path}: line {lines[largest]}: {largest}: found unit {least - 1}, expected 0 to "
            f"{min(num_units, _MAX_UNITS) - 1}"
        )
    seconds = _agreed("unit_seconds", unit_seconds, said["unit_seconds"], said["path"])
    about = {name: said[name] for name in ("layer", "source", "checkpoint", "step")}
    return UnitFile(path, utterances, num_units, known, seconds or DEFAULT_SECONDS, **about)


def _is_plain(path: Path, number: int, line: str) -> bool:
    """Whether the lines are plain, by the first one."""
    if _NAMELESS.fullmatch(line):
        raise TextError(
            f"{path}: line {number}: found {line[:60]!r}, units without a name (a .km); expected "
            "name, tab, units, or a JSON object (`units --format=text` or jsonl)"
        )
    return bool(_PLAIN.fullmatch(line)) or "\t" in line and not line.lstrip().startswith("{")


def _parse_plain(line: str, path: Path, number: int) -> tuple[str, dict[str, Any]]:
    """Name and units of a plain line."""
    name, _, text = line.partition("\t")
    units = text.split()
    if not _PLAIN.fullmatch(line) or len(max(units, key=len, default="")) > _MAX_DIGITS:
        raise TextError(
            f"{path}: line {number}: found {line[:60]!r}, expected a name, a tab, and whole "
            "numbers with spaces between"
        )
    return name, {"units": list(map(int, units))}


def _units_of(entry: Mapping[str, Any], where: str) -> np.ndarray:
    """Units [T] of a line."""
    units = _whole_numbers(entry.get("units"), f"{where}: units", least=0)
    if "durations" not in entry:
        return units
    durations = _whole_numbers(entry["durations"], f"{where}: durations", least=1)
    if len(units) != len(durations):
        raise TextError(
            f"{where}: found {len(units)} units and {len(durations)} durations, expected as many"
        )
    if durations.sum() > _MAX_FRAMES:
        raise TextError(f"{where}: found {durations.sum()} frames, expected {_MAX_FRAMES} at most")
    return np.repeat(units, durations)


def _whole_numbers(found: Any, where: str, *, least: int) -> np.ndarray:
    if not isinstance(found, list) or any(type(number) is not int for number in found):
        raise TextError(f"{where}: found {str(found)[:60]}, expected a list of whole numbers")
    if found and not (least <= min(found) and max(found) < 2**31):
        raise TextError(
            f"{where}: found {min(found)} to {max(found)}, expected {least} to {2**31 - 1}"
        )
    return np.asarray(found, np.int64)


def _beside(path: Path) -> dict[str, Any]:
    """What STEM.stats.json says of a file of units; its fields are None where it is not there."""
    stem = path.name.removesuffix(".gz")
    stem = stem.removesuffix(Path(stem).suffix)
    in_name = _LAYER.search(stem)
    layer = int(in_name[1]) if in_name else None
    side = path.with_name(_LAYER.sub("", stem) + ".stats.json")
    found = {"layer": layer, "path": side, "source": None, "step": None, "checkpoint": ""}
    found |= {"num_units": None, "unit_seconds": None, "runs": False}
    if not side.exists():
        return found
    try:
        said = json.loads(read_text(side))
        layers = [int(number) for number in said["layers"]]
        if layer is None and len(layers) == 1:
            found["layer"] = layer = layers[0]
        if layer is not None:
            found["num_units"] = int(said["statistics"][str(layer)]["num_units"])
        found["unit_seconds"] = 1 / float(said["frame_rate"])
        found |= {"source": str(said["source"]), "checkpoint": str(said["checkpoint"])}
        found["step"] = int(said["step"])
        found["runs"] = (said.get("form"), said.get("format")) == ("runs", "text")
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, TextError):
            raise
        raise TextError(
            f"{side}: found no statistics of layer {layer} that can be read ({error!r}); expected "
            f"those of {path.name}: write both again, or move it away"
        ) from None
    return found


def _agreed(name: str, given: Any, said: Any, side: Path) -> Any:
    if given is not None and said is not None and abs(given - said) > 1e-9:
        raise TextError(f"{side}: found {name} {said:g}, but --{name}={given:g} was given")
    return said if given is None else given
