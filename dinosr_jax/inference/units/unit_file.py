"""Files of units, one line an utterance: ours, written and read, and those of other tools, read.

A line is a JSON object, or plain: name, tab, units with spaces between, one a frame. In an object
the name is in `file` (ours, discophon), `name` (spidr), `fileid` (minimal-hubert) or `audio`
(fastabx). `units` are one a frame; with `durations`, in frames, one a run. STEM.stats.json beside
the file has the statistics, and of which network and layers the units are.

Shapes: T frames, R runs of equal units.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.phones.tables import id_of, parse_object
from dinosr_jax.data.text_files import TextError, read_text
from dinosr_jax.inference.recordings import Recording, printable
from dinosr_jax.inference.units.statistics import run_lengths

Key = Literal["file", "name", "fileid", "audio"]
Form = Literal["frames", "runs"]
Format = Literal["jsonl", "text", "km"]
DEFAULT_SECONDS = 0.02
_LAYER = re.compile(r"-layer(\d+)(?=(_\d+_\d+)?$)")
_PLAIN, _NAMELESS = re.compile(r"[^\t]+\t[0-9 ]*"), re.compile(r"[0-9 ]+")
_MAX_DIGITS = 18
_MAX_UNITS, _MAX_FRAMES = 100_000, 10_000_000


def names_of(recordings: Iterable[Recording], *, key: Key) -> dict[str, str]:
    """The name of each utterance by its id: the id, or for other keys than 'file' its basename.

    Raises:
      AudioError: Two have the same name.
    """
    names, users = {}, {}
    for recording in recordings:
        id_ = recording.id if key == "file" else PurePosixPath(recording.id).name
        name = printable(id_)
        if name in users:
            raise audio.AudioError(
                f"{users[name]} and {recording.name} would both be called {name!r}; use --key=file"
            )
        names[recording.id], users[name] = name, recording.name
    return names


def to_line(name: str, codes: np.ndarray, *, key: Key, form: Form, format: Format = "jsonl") -> str:
    """One utterance with codes [T], as text with its line end.

    `key` is the field of the name. `form` 'frames' has one unit a frame, 'runs' one a run, and in
    JSON lines `durations`, in frames. `format` is 'jsonl'; 'text', name, tab, units; or 'km', units
    alone.
    """
    units, durations = run_lengths(codes) if form == "runs" else (codes, None)
    if format != "jsonl":
        text = " ".join(map(str, units.tolist())) + "\n"
        return text if format == "km" else f"{name}\t{text}"
    line: dict[str, Any] = {key: name, "units": units.tolist()}
    if durations is not None:
        line["durations"] = durations.tolist()
    return json.dumps(line) + "\n"


def paths_of(output: Path, *, layers: Sequence[int], shard: tuple[int, int]) -> list[Path]:
    """One file a layer: units.jsonl, of several units-layer05.jsonl, of a shard units_0_4.jsonl."""
    part = "" if shard[1] == 1 else "_{}_{}".format(*shard)
    tails = [f"-layer{layer:02}" if len(layers) > 1 else "" for layer in layers]
    return [output.with_name(f"{output.stem}{tail}{part}{output.suffix}") for tail in tails]


def side_path(output: Path, *, shard: tuple[int, int]) -> Path:
    """The file with the statistics, of all layers: units.stats.json, units_0_4.stats.json."""
    (path,) = paths_of(output, layers=(0,), shard=shard)
    return path.with_name(f"{path.stem}.stats.json")


class UnitFile(NamedTuple):
    """Units of utterances, [T] each, and what is known of them.

    `num_units` is K; `known` is its origin: 'stats' (the file beside it), 'given', or
    'largest' (the largest unit, plus 1). `layer`, `source`, `step` are None and `checkpoint` is
    empty where no file has them.
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
    """Reads a file of units, JSON lines or plain ones, gzip or not.

    Args:
      path: The file.
      num_units: K; None takes it from the file beside it, else the largest unit, plus 1.
      unit_seconds: From a unit to the next; None takes it from the file beside it, else 20 ms.

    Raises:
      TextError: It is no such file, has an utterance twice, or contradicts the arguments.
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
    side = _read_side(path)
    if plain and side["runs"]:
        raise TextError(
            f"{path}: found one unit a run, without durations, as {side['path']} says; expected "
            "one a frame: write it without --deduplicate, or with --format=jsonl"
        )
    largest = max(utterances, key=lambda id_: utterances[id_].max(initial=-1))
    least = int(utterances[largest].max(initial=0)) + 1
    known = "given" if num_units is not None else "stats" if side["num_units"] else "largest"
    num_units = _agreed("num_units", num_units, side) or least
    if not least <= num_units <= _MAX_UNITS:
        raise TextError(
            f"{path}: line {lines[largest]}: {largest}: found unit {least - 1}, expected 0 to "
            f"{min(num_units, _MAX_UNITS) - 1}"
        )
    seconds = _agreed("unit_seconds", unit_seconds, side) or DEFAULT_SECONDS
    about = {name: side[name] for name in ("layer", "source", "checkpoint", "step")}
    return UnitFile(path, utterances, num_units, known, seconds, **about)


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


def _whole_numbers(values: Any, where: str, *, least: int) -> np.ndarray:
    if not isinstance(values, list) or any(type(number) is not int for number in values):
        raise TextError(f"{where}: found {str(values)[:60]}, expected a list of whole numbers")
    if values and not (least <= min(values) and max(values) < 2**31):
        raise TextError(
            f"{where}: found {min(values)} to {max(values)}, expected {least} to {2**31 - 1}"
        )
    return np.asarray(values, np.int64)


def _read_side(path: Path) -> dict[str, Any]:
    """The fields of STEM.stats.json beside a file of units; None where it is not there."""
    stem = path.name.removesuffix(".gz")
    stem = stem.removesuffix(Path(stem).suffix)
    in_name = _LAYER.search(stem)
    layer = int(in_name[1]) if in_name else None
    side = path.with_name(_LAYER.sub("", stem) + ".stats.json")
    fields = {"layer": layer, "path": side, "source": None, "step": None, "checkpoint": ""}
    fields |= {"num_units": None, "unit_seconds": None, "runs": False}
    if not side.exists():
        return fields
    try:
        values = json.loads(read_text(side))
        layers = [int(number) for number in values["layers"]]
        if layer is None and len(layers) == 1:
            fields["layer"] = layer = layers[0]
        if layer is not None:
            fields["num_units"] = int(values["statistics"][str(layer)]["num_units"])
        fields["unit_seconds"] = 1 / float(values["frame_rate"])
        fields |= {"source": str(values["source"]), "checkpoint": str(values["checkpoint"])}
        fields["step"] = int(values["step"])
        fields["runs"] = (values.get("form"), values.get("format")) == ("runs", "text")
    except TextError:
        raise
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise TextError(
            f"{side}: found no statistics of layer {layer} that can be read ({error!r}); expected "
            f"those of {path.name}: write both again, or move it away"
        ) from None
    return fields


def _agreed(name: str, given: Any, side: Mapping[str, Any]) -> Any:
    """The value that was given, else that of the file beside it; both must be the same."""
    read = side[name]
    if given is not None and read is not None and abs(given - read) > 1e-9:
        raise TextError(f"{side['path']}: found {name} {read:g}, but --{name}={given:g} was given")
    return read if given is None else given
