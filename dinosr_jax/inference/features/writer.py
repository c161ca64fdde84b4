"""Features of many recordings, written to files.

Shapes: T frames, D model, L layers.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.inference import outputs
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording, open_inputs, refuse
from dinosr_jax.inference.selection import Network, Selection, Tensor, parse_layers
from dinosr_jax.model.feature_encoder import receptive_field

Layout = Literal["files", "fairseq"]
Bad = Literal["raise", "skip"]


class Summary(NamedTuple):
    """What was done: recordings written now, there before, left out (name, reason)."""

    written: int
    there_before: int
    skipped: tuple[tuple[str, str], ...]


def parse_shard(text: str) -> tuple[int, int]:
    """'i/n', with i from 0 to n - 1, as numbers."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ValueError(f"shard: found {text!r}, expected i/n with i from 0 to n - 1, such as 0/4")
    return int(first), int(second)


def of_shard(recordings: Sequence[Recording], shard: tuple[int, int]) -> list[Recording]:
    """The recordings of part i of n: neighbours, in order; the same cuts as fairseq's scripts."""
    i, n = shard
    size = len(recordings) / n
    return list(recordings[round(size * i) : round(size * (i + 1))])


def skipped_name(shard: tuple[int, int]) -> str:
    """Name of the list of what was left out; every shard has its own."""
    return "skipped.tsv" if shard[1] == 1 else "skipped_{}_{}.tsv".format(*shard)


def describe(
    model: Pretrained, *, layers: Sequence[int], tensor: Tensor, network: Network, dtype: str
) -> dict[str, Any]:
    """What features.json says of the arrays beside it."""
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


def extract_files(
    model: Pretrained,
    inputs: Sequence[str | Path],
    *,
    output: Path,
    layer: int | str | Sequence[int],
    tensor: Tensor = "block",
    network: Network = "student",
    split: str = "",
    dtype: Literal["float32", "float16"] = "float32",
    layout: Layout = "files",
    shard: str = "0/1",
    name: str = "features",
    bad: Bad = "raise",
    options: batched.Options | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Writes features of recordings.

    Args:
      model: Of `load`.
      inputs: As `open_inputs`.
      output: Folder of ID.npy [T, D], in layer_05/ and so on where there are several layers.
      layout: 'files' or 'fairseq': NAME_i_n.npy and NAME_i_n.len, in the order of the input.
      name: NAME of the shards.
      layer: As `parse_layers`.
      tensor: 'block' or 'ffn'.
      network: Student or teacher.
      split: Split of a prepared dataset.
      dtype: Of what is written.
      shard: 'i/n': only part i (from 0) of n of the recordings.
      bad: 'raise' at the first recording that cannot be used, or 'skip' and list it.
      options: Batches and chunks.
      progress: As `batched.run`.
      say: Called with what the user should know.

    Raises:
      AudioError: A recording cannot be used, where they are not to be skipped.
      OutputError: It cannot be written, or the folder holds other features.
    """
    layers = parse_layers(layer, num_layers=model.config.model.num_layers, tensor=tensor)
    parts = parse_shard(shard)
    forward = batched.Forward(
        model, Selection(layers, tensor), depth=max(layers), network=network, options=options
    )
    skipped: list[tuple[str, str]] = []
    on_bad = refuse if bad == "raise" else lambda r, reason: skipped.append((r.name, reason))
    recordings = of_shard(open_inputs(inputs, split=split, on_bad=on_bad), parts)
    about = {"layers": layers, "tensor": tensor, "network": network, "dtype": dtype}
    outputs.claim(output, describe(model, **about))
    places = FeaturePaths(output, layers, layout, "{}_{}_{}".format(name, *parts))
    if (held := places.complete()) is not None:
        say(f"{places.name}.npy is complete already")
        return Summary(0, held, ())
    written, before = _write_missing(
        forward, recordings, places, np.dtype(dtype), on_bad=on_bad, progress=progress, say=say
    )
    outputs.write_skipped(output, skipped, name=skipped_name(parts))
    return Summary(written, before, tuple(skipped))


def _write_missing(
    forward: batched.Forward,
    recordings: Sequence[Recording],
    places: "FeaturePaths",
    dtype: np.dtype,
    *,
    say: Callable[[str], None],
    **callbacks: Callable,
) -> tuple[int, int]:
    """Writes what is not there yet; returns how many recordings were written, and were there."""
    todo = [r for r in recordings if not all(map(outputs.is_whole, places.of(r.id)))]
    before = len(recordings) - len(todo)
    if before:
        say(f"{before} of {len(recordings)} are there already")
    written = _write(forward, todo, places, dtype=dtype, say=say, **callbacks)
    if places.layout == "fairseq":
        places.join(recordings, width=forward.width, dtype=dtype)
    os.sync()  # once for all files
    return written, before


class FeaturePaths(NamedTuple):
    """Where arrays go."""

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
            parts = [self.of(r.id)[i] for r in recordings]
            outputs.join_shards(self.shard(layer), parts, **array)
        self.remove_parts()

    def remove_parts(self) -> None:
        """Removes what shards were made of."""
        for layer in self.layers:
            shutil.rmtree(self.folder(layer) / f".{self.name}.parts", ignore_errors=True)

    def complete(self) -> int | None:
        """How many recordings the shards hold; None where they are not all there."""
        lengths = [self.shard(layer).with_name(self.name + ".len") for layer in self.layers]
        if self.layout != "fairseq" or not all(path.exists() for path in lengths):
            return None
        self.remove_parts()  # of a process that was killed in doing so
        return sum(line.strip() != "0" for line in lengths[0].read_text().splitlines())


def _write(
    forward: batched.Forward,
    recordings: Sequence[Recording],
    places: FeaturePaths,
    *,
    dtype: np.dtype,
    on_bad: Callable,
    progress: Callable[[float, float], None],
    say: Callable[[str], None],
) -> int:
    """Computes and writes; returns how many recordings."""
    written, files, bad = 0, {}, set()
    try:
        how = {"on_bad": on_bad, "say": say, "progress": progress}
        for part in batched.run(forward, recordings, lengths="fitted", **how):
            largest = max(np.abs(array).max() for array in part.arrays)
            if largest > np.finfo(dtype).max and part.recording.id not in bad:
                bad.add(part.recording.id)
                on_bad(
                    part.recording,
                    f"{part.recording.name}: its features reach {largest:.3g}, {dtype} ends at "
                    f"{np.finfo(dtype).max:.3g}: use --dtype=float32",
                )
            if part.recording.id in bad:
                continue
            if part.first == 0:
                shapes = [(part.num_frames, *array.shape[1:]) for array in part.arrays]
                opened = zip(places.of(part.recording.id), shapes, strict=True)
                files[part.recording.id] = [
                    outputs.ArrayFile(path, shape=shape, dtype=dtype) for path, shape in opened
                ]
            for file, array in zip(files[part.recording.id], part.arrays, strict=True):
                file.write(array)
            if part.first + len(part.arrays[0]) == part.num_frames:
                for file in files.pop(part.recording.id):
                    file.close()
                written += 1
    finally:  # of what failed, or turned out to be bad in a later part
        for file in [file for group in files.values() for file in group]:
            file.discard()
    return written
