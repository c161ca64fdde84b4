"""Features in files, as `extract` writes them and `evaluate abx` reads them.

A folder of [T, D] .npy, one a recording, in layer_05/ and so on where there are several layers; or
fairseq's NAME_i_n.npy with NAME_i_n.len, the recordings in the order of the input. features.json
beside them describes their network and layers.

Shapes: T frames, D model.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.text_files import read_text
from dinosr_jax.errors import UserError
from dinosr_jax.inference import outputs
from dinosr_jax.inference.recordings import Recording, of_shard, printable, read_manifest
from dinosr_jax.inference.selection import Network, Tensor
from dinosr_jax.model.feature_encoder import receptive_field

Layout = Literal["files", "fairseq"]
NAME = "features.json"
_SHARD = re.compile(r"(.+)_(\d+)_(\d+)")


class FeatureError(UserError):
    """Features cannot be used; the message names the file and what was expected."""


def describe(
    model: Any, *, layers: Sequence[int], tensor: Tensor, network: Network, dtype: str
) -> dict[str, Any]:
    """The fields of features.json."""
    config = model.config.model
    field, hop = receptive_field(config.conv_layers)
    rate = audio.SAMPLE_RATE
    return {
        "checkpoint": model.path,
        "fingerprint": model.fingerprint_of(network),
        "step": model.step,
        "source": model.source,
        "model": network,
        "tensor": tensor,
        "layers": list(layers),
        "num_layers": config.num_layers,
        "width": config.width,
        "dtype": dtype,
        "sample_rate": rate,
        "frame_rate": rate / hop,
        "hop_samples": hop,
        "receptive_field_samples": field,
        "frame_start_seconds": f"i * {hop / rate:g}",
        "frame_centre_seconds": f"i * {hop / rate:g} + {field / 2 / rate:g}",
        "normalisation": "mean 0, variance 1 over the whole recording (epsilon 1e-05)",
        "padding_mode": config.padding_mode,
    }


def read_description(folder: Path) -> dict[str, Any]:
    """The fields of features.json; none where there is no such file."""
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FeatureError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(fields, dict):
        raise FeatureError(f"{path}: expected an object, as `extract` writes it")
    return fields


def frame_rate(fields: Mapping[str, Any], folder: Path) -> Fraction:
    """Frames a second by the fields of features.json, exactly; 50 where they have none."""
    rate = fields.get("frame_rate", 50)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1e6:
        raise FeatureError(f"{folder}/{NAME}: frame_rate: found {rate!r}, expected a number")
    return Fraction(str(rate)).limit_denominator(10_000)  # 66.66666666666667 is 200 / 3


class FeaturePaths(NamedTuple):
    """Where arrays are written: ID.npy, or with the layout 'fairseq' NAME.npy and NAME.len.

    Folders are `output` itself, or layer_05/ and so on where there are several layers.
    """

    output: Path
    layers: tuple[int, ...]
    layout: Layout
    name: str

    def folder(self, layer: int) -> Path:
        """Folder of a layer."""
        return self.output / f"layer_{layer:02}" if len(self.layers) > 1 else self.output

    def shard(self, layer: int) -> Path:
        """Path of a layer's shard, without .npy and .len."""
        return self.folder(layer) / self.name

    def of(self, id_: str) -> list[Path]:
        """Files of one recording, one a layer."""
        if self.layout == "files":
            return [outputs.inside(self.folder(layer), f"{id_}.npy") for layer in self.layers]
        parts = f".{self.name}.parts"
        return [outputs.inside(self.folder(i) / parts, f"{id_}.part") for i in self.layers]

    def join(self, recordings: Sequence[Recording], **array: Any) -> None:
        """Makes shards of the files, in order; `width` and `dtype` are those of the arrays."""
        for i, layer in enumerate(self.layers):
            join_shards(self.shard(layer), [self.of(r.id)[i] for r in recordings], **array)
        self._remove_parts()

    def _remove_parts(self) -> None:
        for layer in self.layers:
            shutil.rmtree(self.folder(layer) / f".{self.name}.parts", ignore_errors=True)

    def complete(self) -> int | None:
        """How many recordings the shards hold; None where they are not all there."""
        lengths = [self.shard(layer).with_name(self.name + ".len") for layer in self.layers]
        if self.layout != "fairseq" or not all(path.exists() for path in lengths):
            return None
        self._remove_parts()  # of a process that was killed in doing so
        return sum(line.strip() != "0" for line in lengths[0].read_text().splitlines())


def join_shards(path: Path, parts: Sequence[Path], *, width: int, dtype: np.dtype) -> None:
    """Joins arrays [T, D] in order to fairseq's PATH.npy [sum T, D] and PATH.len.

    A part that is not there has 0 frames.
    """
    there = [part for part in parts if part.exists()]
    frames = dict.fromkeys(parts, 0) | {part: len(np.load(part, mmap_mode="r")) for part in there}
    whole = path.with_name(path.name + ".npy")
    file = outputs.ArrayFile(whole, shape=(sum(frames.values()), width), dtype=dtype)
    for part in there:
        file.write(np.load(part))
    file.close()
    lengths = "".join(f"{frames[part]}\n" for part in parts)
    outputs.write_text(path.with_name(path.name + ".len"), lengths)


class FileRows(NamedTuple):
    """Rows of a file of features; all where `last` is None."""

    path: Path
    first: int = 0
    last: int | None = None


def find_rows(folder: Path, manifest: str | Path | None) -> dict[str, FileRows]:
    """The features of every recording in a folder of one layer, by name.

    `manifest` is fairseq's .tsv in the order of its .npy and .len, which have no names.

    Raises:
      FeatureError: There are none, or the manifest has other recordings.
    """
    files = sorted(path for path in folder.rglob("*.npy") if not path.name.startswith("."))
    if not files:
        raise FeatureError(f"{folder}: found no .npy, expected one a recording, [T, D]")
    shards = [path for path in files if path.with_suffix(".len").exists()]
    if manifest is not None:
        return _rows_of_shards(shards, folder, Path(manifest))
    if shards:
        raise FeatureError(
            f"{shards[0]}: fairseq's files have no names of recordings; give --manifest=FILE.tsv "
            "with the recordings in their order"
        )
    return {path.relative_to(folder).with_suffix("").as_posix(): FileRows(path) for path in files}


def _rows_of_shards(shards: Sequence[Path], folder: Path, manifest: Path) -> dict[str, FileRows]:
    """Recordings of fairseq's NAME_i_n.npy and .len."""
    try:
        names = [str(Path(name).with_suffix("")) for _, name in read_manifest(manifest)[1]]
    except audio.AudioError as error:
        raise FeatureError(str(error)) from None
    rows: dict[str, FileRows] = {}
    for path in shards:
        match = _SHARD.fullmatch(path.stem)
        here = of_shard(names, (int(match[2]), int(match[3])) if match else (0, 1))
        lengths = path.with_suffix(".len")
        try:
            counts = [int(line) for line in read_text(lengths, may_be_empty=True).split()]
        except ValueError as error:
            raise FeatureError(f"{lengths}: {error}") from None
        if len(counts) != len(here):
            raise FeatureError(
                f"{lengths}: found {len(counts)} lengths, expected {len(here)}, "
                f"one for each recording of {manifest}"
            )
        ends = np.cumsum(counts).tolist()
        for name, end, count in zip(here, ends, counts, strict=True):
            if count:
                rows[name] = FileRows(path, end - count, end)
    if not rows:
        raise FeatureError(f"{folder}: found no .npy with a .len beside it")
    return rows


def read_rows(rows: FileRows) -> np.ndarray:
    """An array [T] or [T, D] of numbers; nothing is unpickled.

    Raises:
      FeatureError: It is damaged, no such array, or too short.
    """
    name = printable(str(rows.path))
    try:
        array = np.load(rows.path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeatureError(f"{name}: cannot be read as .npy ({error}); extract it again") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not 0 < array.ndim < 3:
        what = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else "no array"
        raise FeatureError(f"{name}: found {what}, expected [T, D] numbers")
    if rows.last is not None and rows.last > len(array):
        raise FeatureError(f"{name}: found {len(array)} frames, expected {rows.last} by its .len")
    return np.asarray(array[rows.first : rows.last])
