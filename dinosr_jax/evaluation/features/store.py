"""Features that probes learn from: held in memory where they fit, else in files.

Both give the same results: what is computed, and its type, is the same. Only `cache`, a folder
whose files are kept for the next time, has float16.

Shapes: B batch, T frames, L layers, D width.
"""

import contextlib
import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.threads import ahead
from dinosr_jax.evaluation.features import compute, mfcc_deltas
from dinosr_jax.evaluation.features.compute import Done
from dinosr_jax.inference import outputs
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Bad, Recording

MAX_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Features:
    """Arrays [L, T, D] of utterances by id, of the layers named (None: it has no number)."""

    layers: tuple[int | None, ...]
    arrays: Mapping[str, np.ndarray]

    @functools.cached_property
    def lengths(self) -> dict[str, int]:
        """T of every utterance."""
        return {id_: array.shape[1] for id_, array in self.arrays.items()}

    def batch(self, ids: Sequence[str], *, frames: int) -> np.ndarray:
        """Features [B, frames, L, D], padded with zeros."""
        arrays = [self.arrays[id_].swapaxes(0, 1) for id_ in ids]
        padded = np.zeros((len(ids), frames, *arrays[0].shape[1:]), arrays[0].dtype)
        for row, array in zip(padded, arrays, strict=True):
            row[: len(array)] = array
        return padded


class _Files(Mapping[str, np.ndarray]):
    """Arrays in .npy files, mapped into memory when they are read."""

    def __init__(self, paths: Mapping[str, Path]):
        self._paths = paths

    def __getitem__(self, id_: str) -> np.ndarray:
        return np.load(self._paths[id_], mmap_mode="r", allow_pickle=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


class System(NamedTuple):
    """A kind of features: `name` as in results; `compute` (recordings, progress) yields arrays.

    `digest` differs where the features of layers and width do.
    """

    name: str
    compute: Callable[..., Iterator[tuple[str, np.ndarray]]]
    layers: tuple[int | None, ...]
    width: int
    digest: str


def systems(
    model: Pretrained,
    fresh: Pretrained,
    *,
    statistics: mfcc_deltas.MfccStatistics | None = None,
    **how: str,
) -> list[System]:
    """The network, MFCC, and the same network untrained (`fresh`).

    MFCC are normalised with `statistics`; None for each utterance's own. Then their mean over an
    utterance is 0, and says nothing where a head takes that mean. `how`: `lengths` of `of_network`.
    """
    config = model.config.model
    layers = tuple(range(config.num_layers + 1))
    of_mfcc = functools.partial(compute.of_mfcc, model=model, statistics=statistics)
    digest = hashlib.sha256(repr(config.conv_layers).encode())
    for array in statistics or ():
        digest.update(np.ascontiguousarray(array))
    network = lambda name, of: System(
        name, functools.partial(compute.of_network, of, **how), layers, config.width, of.fingerprint
    )
    return [
        network("codebook", model),
        System("mfcc", of_mfcc, (None,), mfcc_deltas.WIDTH, digest.hexdigest()[:16]),
        network("untrained", fresh),
    ]


def checked(
    recordings: Sequence[Recording],
    *,
    model: Pretrained,
    on_bad: Bad,
    progress: Done = lambda recordings: None,
) -> list[Recording]:
    """Decodes every recording once: what is bad is known before anything is learnt.

    Returns those that can be used, with their lengths; `on_bad` is called with the others and the
    reason, and `progress` with 1 after each. The frames of `model` decide what is too short.
    """
    usable = []
    count = lambda recording: len(recording.load())
    for recording, future in ahead(count, recordings):
        progress(1)
        try:
            samples = future.result()
            if not model.num_frames(samples):
                raise audio.AudioError(f"{recording.name}: too short for one frame")
        except (audio.AudioError, OSError) as error:
            on_bad(recording, str(error))
            continue
        usable.append(recording._replace(num_samples=samples))
    return usable


@contextlib.contextmanager
def open_features(
    system: System,
    recordings: Sequence[Recording],
    *,
    model: Pretrained,
    max_bytes: int = MAX_BYTES,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Done = lambda seconds: None,
) -> Iterator[Features]:
    """Computes features of all recordings: in memory where they fit, else in files.

    Args:
      system: Whose.
      recordings: Of known length.
      model: Its frames are counted.
      max_bytes: Of memory; larger features go to a temporary folder, which is removed at the end.
      cache: Folder where they are kept in float16, and read again the next time; None for none.
      say: Called where they are not in memory.
      progress: Called with the seconds of audio that more are done.

    Yields:
      The features.

    Raises:
      AudioError: A recording cannot be used.
      OutputError: The folder cannot be written to, or the disk is full.
    """
    shapes = {
        r.id: (len(system.layers), model.num_frames(r.num_samples), system.width)
        for r in recordings
    }
    size = 4 * sum(layers * frames * width for layers, frames, width in shapes.values())
    write = functools.partial(_write, system, recordings, shapes, progress=progress)
    if cache is not None:
        arrays: Mapping[str, np.ndarray] = write(
            cache / f"{system.name}-{system.digest}", "float16"
        )
        yield Features(system.layers, arrays)
    elif size <= max_bytes:
        yield Features(system.layers, dict(system.compute(recordings, progress=progress)))
    else:
        with tempfile.TemporaryDirectory(prefix="dinosr-features-") as folder:
            say(
                f"{system.name}: {size / 2**30:.1f} GiB of features, and --max_memory allows "
                f"{max_bytes / 2**30:.1f}: they are kept in {folder} until the end; TMPDIR names "
                "another disk, --cache=DIR keeps them in float16"
            )
            yield Features(system.layers, write(Path(folder), "float32"))


def _write(
    system: System,
    recordings: Sequence[Recording],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
    dtype: str,
    *,
    progress: Done,
) -> _Files:
    """Writes the files that are not there; returns all of them."""
    outputs.remove_stale(folder)
    paths = {r.id: folder / f"{_name(r)}.npy" for r in recordings}
    there = {id_ for id_, path in paths.items() if _holds(path, shapes[id_], dtype)}
    progress(sum(r.num_samples for r in recordings if r.id in there) / audio.SAMPLE_RATE)
    missing = [r for r in recordings if r.id not in there]
    for id_, array in system.compute(missing, progress=progress) if missing else ():
        with outputs.replacing(paths[id_], sync=False) as file:
            np.save(file, array.astype(dtype, copy=False))
    return _Files(paths)


def _name(recording: Recording) -> str:
    """Of the file of a recording: ids may hold anything."""
    text = f"{recording.name}\0{recording.id}\0{recording.num_samples}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _holds(path: Path, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a file holds an array of a shape; one that is cut or damaged does not."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return array.shape == shape and array.dtype == dtype
