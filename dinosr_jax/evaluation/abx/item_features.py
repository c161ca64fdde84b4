"""Features and units of recordings, read for the items of an item file.

Shapes: T frames, D numbers a frame, n items, F frames of all recordings.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data.text_files import nfc
from dinosr_jax.evaluation.abx import dtw
from dinosr_jax.evaluation.abx.distances import Distance, Frames, equal_frames, prepare
from dinosr_jax.evaluation.abx.items import Items, frame_slices
from dinosr_jax.inference.features import feature_files
from dinosr_jax.inference.features.feature_files import (
    FeatureError,
    FileRows,
    find_rows,
    read_description,
    read_rows,
)
from dinosr_jax.inference.recordings import printable
from dinosr_jax.inference.units import unit_file

FRAME_RATE = Fraction(50)
MAX_PADDING = 2  # frames that may be missing at the end of a recording, with padding
_LAYER = re.compile(r"layer_(\d+)")
Short = Literal["raise", "skip"]
End = Literal["raise", "repeat"]


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of one layer, or units.

    Attributes:
      path: where they are.
      entries: by name of the recording: part of a file, or units [T].
      frame_rate: frames a second, exactly.
      layer: from 1; None where nothing says it.
      about: what features.json or STEM.stats.json says: checkpoint, step, source.
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
      frame_rate: Frames a second; None is what features.json or STEM.stats.json says, else 50.
      manifest: fairseq's .tsv in the order of its .npy and .len, which have no names.

    Returns:
      One set a layer.

    Raises:
      FeatureError: There is nothing, or not this layer.
      TextError: The units are damaged.
    """
    path = Path(path)
    if not path.is_dir():
        if path.suffix == ".npy" or not path.exists():
            found = "a file" if path.exists() else "nothing"
            raise FeatureError(
                f"{path}: found {found}, expected a folder of .npy, or a file of units"
            )
        found = [_open_units(path, frame_rate)]
    else:
        about = read_description(path)
        folders = {
            int(match[1]): child
            for child in sorted(path.iterdir())
            if (match := _LAYER.fullmatch(child.name)) and child.is_dir()
        }
        said = about.get("layers")
        only = said[0] if isinstance(said, list) and len(said) == 1 else None
        rate = frame_rate or feature_files.frame_rate(about, path)
        make = lambda folder, number: FeatureSet(
            folder, find_rows(folder, manifest), rate, number, about
        )
        if folders and layer is not None:
            folders = {number: folders[number] for number in folders if number == layer}
        found = [make(child, number) for number, child in folders.items()]
        if not found and layer in (None, only):
            found = [make(path, only)]
    if layer is not None and [one.layer for one in found] != [layer]:
        raise FeatureError(f"{path}: found no features of layer {layer}; leave out --layer for all")
    return found


def _open_units(path: Path, frame_rate: Fraction | None) -> FeatureSet:
    file = unit_file.read_units(path)
    about = {name: getattr(file, name) for name in ("checkpoint", "step", "source")}
    rate = frame_rate or 1 / Fraction(str(round(file.unit_seconds, 12)))
    return FeatureSet(path, file.utterances, rate, file.layer, about)


def gather(
    source: FeatureSet,
    items: Items,
    *,
    distance: Distance,
    end: End = "raise",
    short: Short = "raise",
) -> Gathered:
    """Reads what the items need.

    Args:
      source: Features or units.
      items: Of an item file.
      distance: For which frames are prepared.
      end: Where an item lasts longer than its recording: 'raise', or 'repeat' its last frame, two
        times at most.
      short: Of items without a frame: 'raise' or 'skip'.

    Returns:
      Frames and items; `kept` [n] are the indices of those that have frames.

    Raises:
      FeatureError: A recording or frames are missing, an item is too short, or the features are
        not finite, of different widths, or not of the kind that the distance needs.
    """
    starts, ends, kept = _slices(items, source.frame_rate, short)
    entries = _match(dict.fromkeys(items.files[i] for i in kept), source)
    by_file: dict[str, list[int]] = {}
    for i in kept:
        by_file.setdefault(items.files[i], []).append(i)
    read = _read_units if distance == "identical" else _read_values
    pieces, begins, total = [], np.zeros(len(items), np.int64), 0
    for name, members in by_file.items():
        piece = read(entries[name], distance, pieces[0] if pieces else None)
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
    found, users, missing = {}, {}, []
    names = list(names)
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
            found[name] = source.entries[id_]
        missing += [] if fits else [name]
    if missing:
        raise FeatureError(
            f"{source.path}: {len(missing)} of {len(names)} recordings of the item file are not "
            f"there, the first is {missing[0]}; found {len(source.entries)}, such as "
            f"{printable(next(iter(source.entries)))}"
        )
    return found


def _read_values(entry: FileRows | np.ndarray, distance: Distance, other: Frames | None) -> Frames:
    if isinstance(entry, np.ndarray):
        raise FeatureError(f"units have no {distance} distance; expected 'identical'")
    array, name = read_rows(entry), printable(str(entry.path))
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
    if other is not None and values.shape[1] != other.values.shape[1]:
        raise FeatureError(
            f"{name}: found {array.shape[1]} numbers a frame, other files have another number"
        )
    return Frames(np.zeros(len(values), np.int32), values, own)


def _read_units(entry: FileRows | np.ndarray, distance: Distance, other: Frames | None) -> Frames:
    del distance, other
    units = entry
    if not isinstance(entry, np.ndarray):
        units = read_rows(entry)
        units = units[:, 0] if units.ndim == 2 and units.shape[1] == 1 else units
        if units.ndim != 1 or (units != np.floor(units)).any() or np.abs(units).max() >= 2**31:
            raise FeatureError(
                f"{printable(str(entry.path))}: found {units.dtype}{list(units.shape)}, expected "
                "[T] or [T, 1] whole numbers for 'identical'"
            )
    ids = units.astype(np.int32)
    return Frames(ids, np.zeros((len(ids), 0), np.float32), np.zeros(len(ids), np.float32))
