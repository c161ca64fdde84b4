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

MAX_PADDING = 2  # frames that may be missing at the end of a recording, with padding
_LAYER = re.compile(r"layer_(\d+)")
Short = Literal["raise", "skip"]
End = Literal["raise", "repeat"]


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
        file = unit_file.read_units(path)
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
    about = read_description(path)
    rate = frame_rate or feature_files.frame_rate(about, path)
    make = lambda folder, number: FeatureSet(
        folder, find_rows(folder, manifest), rate, number, about
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


def _read_values(entry: FileRows | np.ndarray, distance: Distance) -> Frames:
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
    return Frames(np.zeros(len(values), np.int32), values, own)


def _read_units(entry: FileRows | np.ndarray) -> Frames:
    units = entry
    if not isinstance(entry, np.ndarray):
        name = printable(str(entry.path))
        units = read_rows(entry)
        units = units[:, 0] if units.ndim == 2 and units.shape[1] == 1 else units
        if units.ndim != 1 or (units != np.floor(units)).any() or np.abs(units).max() >= 2**31:
            raise FeatureError(
                f"{name}: found {units.dtype}{list(units.shape)}, expected [T] or [T, 1] whole "
                "numbers for 'identical'"
            )
    ids = units.astype(np.int32)
    return Frames(ids, np.zeros((len(ids), 0), np.float32), np.zeros(len(ids), np.float32))
