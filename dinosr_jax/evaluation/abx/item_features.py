"""Features and units of recordings, read for the items of an item file.

Features are what `extract` writes: a folder of [T, D] .npy, in layer_05/ and so on where there are
several layers, or fairseq's .npy with .len. Units are JSON lines, or plain ones.

Shapes: T frames, D numbers a frame, n items, F frames of all recordings.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data.audio import AudioError
from dinosr_jax.data.text_files import nfc, read_text
from dinosr_jax.errors import UserError
from dinosr_jax.evaluation.abx import dtw
from dinosr_jax.evaluation.abx.distances import Distance, Frames, equal_frames, prepare
from dinosr_jax.evaluation.abx.items import Items, frame_slices
from dinosr_jax.inference.features.writer import of_shard
from dinosr_jax.inference.recordings import printable, read_manifest
from dinosr_jax.inference.units import reader

MAX_PADDING = 2  # frames that may be missing at the end of a recording, with padding
_LAYER = re.compile(r"layer_(\d+)")
_SHARD = re.compile(r"(.+)_(\d+)_(\d+)")
Short = Literal["raise", "skip"]
End = Literal["raise", "repeat"]


class FeatureError(UserError, ValueError):
    """Features cannot be used; the message names the file and what was expected."""


class FileRows(NamedTuple):
    """Rows of a file of features; all where `last` is None."""

    path: Path
    first: int = 0
    last: int | None = None


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of one layer, or units.

    `entries` are, by name of the recording, parts of files, or units [T]; `frame_rate` is exact;
    `layer` is from 1, None where it is not known; `about` holds checkpoint, step and source, of
    features.json or STEM.stats.json.
    """

    path: Path
    entries: Mapping[str, FileRows | np.ndarray]
    frame_rate: Fraction
    layer: int | None
    about: Mapping[str, Any]

    @property
    def kind(self) -> Literal["features", "units"]:
        """What the recordings have."""
        units = isinstance(next(iter(self.entries.values())), np.ndarray)
        return "units" if units else "features"


class Gathered(NamedTuple):
    """Frames of the recordings, the items in them, and which items these are."""

    frames: Frames
    items: dtw.ItemFrames
    kept: np.ndarray


def open_features(
    path: str | Path,
    *,
    layer: int | None = None,
    frame_rate: Fraction | None = None,
    manifest: str | Path | None = None,
) -> list[FeatureSet]:
    """Finds features, or reads units.

    Args:
      path: Folder of features, or a file of units.
      layer: Only this one; None takes all that there are.
      frame_rate: Frames a second; None for that of features.json or STEM.stats.json, else 50.
      manifest: fairseq's .tsv in the order of its .npy and .len, which have no names.

    Returns:
      One set a layer.

    Raises:
      FeatureError: There is nothing, or not this layer.
      TextError: The units are damaged.
    """
    path = Path(path)
    if path.is_dir():
        sets = _open_folders(path, layer, frame_rate, manifest)
    elif path.suffix == ".npy" or not path.exists():
        what = "a file" if path.exists() else "nothing"
        raise FeatureError(f"{path}: found {what}, expected a folder of .npy, or a file of units")
    else:
        file = reader.read_units(path)
        about = {name: getattr(file, name) for name in ("checkpoint", "step", "source")}
        rate = frame_rate or 1 / Fraction(str(round(file.unit_seconds, 12)))
        sets = [FeatureSet(path, file.utterances, rate, file.layer, about)]
    if layer is not None and [one.layer for one in sets] != [layer]:
        raise FeatureError(f"{path}: found no features of layer {layer}; leave out --layer for all")
    return sets


def _open_folders(
    path: Path, layer: int | None, frame_rate: Fraction | None, manifest: str | Path | None
) -> list[FeatureSet]:
    """The features in layer_05/ and so on, else those in the folder itself."""
    about = _read_description(path)
    rate = frame_rate or _rate(about, path)
    make = lambda folder, number: FeatureSet(
        folder, _find_entries(folder, manifest), rate, number, about
    )
    folders = {
        int(match[1]): child
        for child in sorted(path.iterdir())
        if (match := _LAYER.fullmatch(child.name)) and child.is_dir()
    }
    chosen = [number for number in folders if layer in (None, number)]
    if chosen:
        return [make(folders[number], number) for number in chosen]
    layers = about.get("layers")
    only = layers[0] if isinstance(layers, list) and len(layers) == 1 else None
    return [make(path, only)] if layer in (None, only) else []


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "features.json"
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FeatureError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(about, dict):
        raise FeatureError(f"{path}: expected an object, as `extract` writes it")
    return about


def _rate(about: Mapping[str, Any], path: Path) -> Fraction:
    rate = about.get("frame_rate", 50)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1e6:
        raise FeatureError(f"{path}/features.json: frame_rate: found {rate!r}, expected a number")
    return Fraction(str(rate)).limit_denominator(10_000)  # 66.66666666666667 is 200 / 3


def _find_entries(folder: Path, manifest: str | Path | None) -> dict[str, FileRows]:
    files = sorted(path for path in folder.rglob("*.npy") if not path.name.startswith("."))
    if not files:
        raise FeatureError(f"{folder}: found no .npy, expected one a recording, [T, D]")
    shards = [path for path in files if path.with_suffix(".len").exists()]
    if manifest is not None:
        return _find_in_shards(shards, folder, Path(manifest))
    if shards:
        raise FeatureError(
            f"{shards[0]}: fairseq's files have no names of recordings; give --manifest=FILE.tsv "
            "with the recordings in their order"
        )
    return {path.relative_to(folder).with_suffix("").as_posix(): FileRows(path) for path in files}


def _find_in_shards(shards: Sequence[Path], folder: Path, manifest: Path) -> dict[str, FileRows]:
    """Recordings of fairseq's NAME_i_n.npy and .len."""
    try:
        names = [str(Path(name).with_suffix("")) for _, name in read_manifest(manifest)[1]]
    except AudioError as error:
        raise FeatureError(str(error)) from None
    entries: dict[str, FileRows] = {}
    for path in shards:
        match, lengths = _SHARD.fullmatch(path.stem), path.with_suffix(".len")
        here = of_shard(names, (int(match[2]), int(match[3])) if match else (0, 1))
        try:
            counts = [int(line) for line in read_text(lengths, may_be_empty=True).split()]
        except ValueError as error:
            raise FeatureError(f"{lengths}: {error}") from None
        if len(counts) != len(here):
            raise FeatureError(
                f"{lengths}: found {len(counts)} lengths, expected {len(here)}, one for each "
                f"recording of {manifest}"
            )
        for name, end, count in zip(here, np.cumsum(counts).tolist(), counts, strict=True):
            if count:
                entries[name] = FileRows(path, end - count, end)
    if not entries:
        raise FeatureError(f"{folder}: found no .npy with a .len beside it")
    return entries


def gather(
    source: FeatureSet,
    items: Items,
    *,
    distance: Distance,
    end: End = "raise",
    short: Short = "raise",
) -> Gathered:
    """Reads what the items need; `kept` [n] are the indices of those that have frames.

    Args:
      source: Features or units.
      items: Of an item file.
      distance: For which frames are prepared.
      end: Where an item lasts longer than its recording: 'raise', or 'repeat' its last frame, two
        times at most.
      short: Of items without a frame: 'raise' or 'skip'.

    Raises:
      FeatureError: A recording or frames are missing, an item is too short, or features are not
        finite, of different widths, or not of the kind that the distance needs.
    """
    starts, ends, kept = _slices(items, source.frame_rate, short)
    entries = _match(dict.fromkeys(items.files[i] for i in kept), source)
    by_file: dict[str, list[int]] = {}
    for i in kept:
        by_file.setdefault(items.files[i], []).append(i)
    pieces, begins, total = [], np.zeros(len(items), np.int64), 0
    width = lambda piece: piece.values.shape[1] // (1 + (distance == "kl_symmetric"))
    for name, members in by_file.items():
        entry = entries[name]
        piece = _read_units(entry) if distance == "identical" else _read_values(entry, distance)
        if width(piece) != width((pieces or [piece])[0]):
            raise FeatureError(
                f"{printable(str(entry.path))}: found {width(piece)} numbers a frame, expected "
                f"{width(pieces[0])}, as in the files before"
            )
        last = max(members, key=lambda i: ends[i])
        missing = int(ends[last]) - len(piece.ids)
        if missing > (MAX_PADDING if end == "repeat" else 0):
            raise FeatureError(
                f"{items.name(last)}: needs frames {starts[last]} to {ends[last] - 1}, found "
                f"{len(piece.ids)} frames at {float(source.frame_rate):g} a second. Where only the "
                "last one is missing, which is usual at the end of a recording, use "
                f"--pad_end (it repeats the last frame, {MAX_PADDING} times at most)"
            )
        if missing > 0:
            index = np.minimum(np.arange(ends[last]), len(piece.ids) - 1)
            piece = Frames(*(array[index] for array in piece))
        begins[members] = starts[members] + total
        total += len(piece.ids)
        pieces.append(piece)
    frames = Frames(*map(np.concatenate, zip(*pieces, strict=True)))
    if distance != "identical":
        frames = frames._replace(ids=equal_frames(frames.values))
    return Gathered(frames, dtw.ItemFrames(begins[kept], (ends - starts)[kept]), kept)


def _slices(
    items: Items, frame_rate: Fraction, short: Short
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First frames, ends, and which items have frames."""
    starts, ends = frame_slices(items, frame_rate=frame_rate)
    empty = np.flatnonzero(ends <= starts)
    if len(empty) and short == "raise":
        raise FeatureError(
            f"{len(empty)} of {len(items)} items have no frame at {float(frame_rate):g} "
            f"frames a second, the first is {items.name(empty[0])}; leave them out with "
            "--short=skip, or check the frame rate"
        )
    kept = np.flatnonzero(ends > starts)
    if not len(kept):
        raise FeatureError(f"none of the {len(items)} items has a frame; check the frame rate")
    if longest := np.flatnonzero(ends - starts > dtw.MAX_FRAMES).tolist():
        raise FeatureError(
            f"{items.name(longest[0])}: found {(ends - starts)[longest[0]]} frames, expected "
            f"{dtw.MAX_FRAMES} at most"
        )
    return starts, ends, kept


def _match(names: Iterable[str], source: FeatureSet) -> dict[str, FileRows | np.ndarray]:
    """The recording of each name: its own, or one whose name without folders is the same."""
    by_name: dict[str, list[str]] = {}
    for id_ in source.entries:
        for name in {nfc(id_), nfc(PurePosixPath(id_).name)}:
            by_name.setdefault(name, []).append(id_)
    entries, users, missing, names = {}, {}, [], list(names)
    for name in names:
        fits = [name] if name in source.entries else by_name.get(nfc(name), [])
        fits = fits or by_name.get(nfc(PurePosixPath(name).name), [])
        if len(fits) > 1:
            raise FeatureError(
                f"{name}: found {fits[0]} and {fits[1]} in {source.path}, expected one; write the "
                "folder into the item file (`evaluate items --names=id`)"
            )
        for id_ in fits:
            if users.setdefault(id_, name) != name:
                raise FeatureError(
                    f"{users[id_]} and {name} of the item file would both be {id_} of {source.path}"
                )
            entries[name] = source.entries[id_]
        missing += [] if fits else [name]
    if missing:
        raise FeatureError(
            f"{source.path}: {len(missing)} of {len(names)} recordings of the item file are not "
            f"there, the first is {missing[0]}; found {len(source.entries)}, such as "
            f"{printable(next(iter(source.entries)))}"
        )
    return entries


def _load(part: FileRows, name: str) -> np.ndarray:
    try:
        array = np.load(part.path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeatureError(f"{name}: cannot be read as .npy ({error}); extract it again") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not 0 < array.ndim < 3:
        what = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else "no array"
        raise FeatureError(f"{name}: found {what}, expected [T, D] numbers")
    if part.last is not None and part.last > len(array):
        raise FeatureError(f"{name}: found {len(array)} frames, expected {part.last} by its .len")
    return np.asarray(array[part.first : part.last])


def _read_values(entry: FileRows | np.ndarray, distance: Distance) -> Frames:
    if isinstance(entry, np.ndarray):
        raise FeatureError(f"units have no {distance} distance; expected 'identical'")
    name = printable(str(entry.path))
    array = _load(entry, name)
    if array.ndim != 2 or not array.size:
        raise FeatureError(f"{name}: found the shape {list(array.shape)}, expected [T, D]")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise FeatureError(
            f"{name}: {len(bad)} of {len(array)} frames are not finite, the first is {bad[0]}; "
            "extract it again"
        )
    try:
        values, own = prepare(array, distance=distance)
    except ValueError as error:
        raise FeatureError(f"{name}: {error}") from None
    return Frames(np.zeros(len(values), np.int32), values, own)


def _read_units(entry: FileRows | np.ndarray) -> Frames:
    units = entry
    if not isinstance(entry, np.ndarray):
        name = printable(str(entry.path))
        units = _load(entry, name)
        units = units[:, 0] if units.ndim == 2 and units.shape[1] == 1 else units
        if units.ndim != 1 or (units != np.floor(units)).any() or np.abs(units).max() >= 2**31:
            raise FeatureError(
                f"{name}: found {units.dtype}{list(units.shape)}, expected [T] or [T, 1] whole "
                "numbers for 'identical'"
            )
    ids = units.astype(np.int32)
    return Frames(ids, np.zeros((len(ids), 0), np.float32), np.zeros(len(ids), np.float32))
