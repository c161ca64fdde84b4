"""Features of many recordings, written to files.

Shapes: T frames, D model, L layers.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dinosr_jax.inference import outputs
from dinosr_jax.inference.features.feature_files import FeaturePaths, Layout, describe
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.outputs import Summary
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Bad, Chosen
from dinosr_jax.inference.selection import Network, Selection, Tensor, parse_layers


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
    bad: Literal["raise", "skip"] = "raise",
    options: batched.Options | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Writes features of recordings: the `tensor` of each layer of a network, as of `parse_layers`.

    `inputs` and `split` are as of `open_inputs`, `shard` and `bad` as of `Chosen`, `options`,
    `progress` and `say` as of `batched.run`. `output` is the folder; `layout` and `name` are as of
    `FeaturePaths`; `dtype` is that of the arrays.

    Raises:
      AudioError: A recording cannot be used, where they are not to be skipped.
      OutputError: It cannot be written, or the folder holds other features.
    """
    layers = parse_layers(layer, num_layers=model.config.model.num_layers, tensor=tensor)
    how = {"depth": max(layers), "network": network, "options": options}
    forward = batched.Forward(model, Selection(layers, tensor), **how)
    chosen = Chosen(inputs, split=split, shard=shard, bad=bad)
    about = {"layers": layers, "tensor": tensor, "network": network, "dtype": dtype}
    outputs.claim(output, describe(model, **about))
    places = FeaturePaths(output, layers, layout, "{}_{}_{}".format(name, *chosen.shard))
    if (held := places.complete()) is not None:
        say(f"{places.name}.npy is complete already")
        return Summary(0, held, ())
    todo = [r for r in chosen.recordings if not all(map(outputs.is_whole, places.of(r.id)))]
    before = len(chosen.recordings) - len(todo)
    if before:
        say(f"{before} of {len(chosen.recordings)} are there already")
    run = {"on_bad": chosen.on_bad, "progress": progress, "say": say}
    parts = batched.run(forward, todo, lengths="fitted", **run)
    written = _write(parts, places, dtype=np.dtype(dtype), on_bad=chosen.on_bad)
    if layout == "fairseq":
        places.join(chosen.recordings, width=forward.width, dtype=np.dtype(dtype))
    os.sync()  # once for all files
    return outputs.summary(written, before, chosen, folder=output)


def _write(
    parts: Iterable[batched.Part], places: FeaturePaths, *, dtype: np.dtype, on_bad: Bad
) -> int:
    """Writes arrays as they come; returns how many recordings."""
    written, files, bad = 0, {}, set()
    try:
        for part in parts:
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
