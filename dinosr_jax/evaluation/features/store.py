"""Where the features of a probe come from: memory, files, or the network as they are needed.

Shapes: B batch, T frames, L layers, D width.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.threads import ahead
from dinosr_jax.evaluation.features import in_memory, mfcc_deltas
from dinosr_jax.inference import outputs
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Bad, Recording

_GROUP_SECONDS = 600.0  # of audio whose features are held before they are written
Compute = Callable[..., in_memory.Features]  # of recordings, and `progress`


class FeatureSource(Protocol):
    """Where features come from."""

    def lengths(self) -> Mapping[str, int]:
        """T of every utterance."""

    def batch(self, ids: Sequence[str], *, frames: int) -> Any:
        """Features [B, frames, L, D], padded with anything."""


class Held(NamedTuple):
    """Features in memory: [L, T, D] of every utterance."""

    arrays: Mapping[str, np.ndarray]

    def lengths(self) -> dict[str, int]:
        """T of every utterance."""
        return {id_: array.shape[1] for id_, array in self.arrays.items()}

    def batch(self, ids: Sequence[str], *, frames: int) -> np.ndarray:
        """Features [B, frames, L, D], padded with zeros."""
        layers, _, width = self.arrays[ids[0]].shape
        found = np.zeros((len(ids), frames, layers, width), self.arrays[ids[0]].dtype)
        for row, id_ in enumerate(ids):
            array = self.arrays[id_].swapaxes(0, 1)
            found[row, : len(array)] = array
        return found


class Stored(NamedTuple):
    """Features in files: [L, T, D] float16 of every utterance, read when they are needed."""

    paths: Mapping[str, Path]
    frames: Mapping[str, int]

    def lengths(self) -> Mapping[str, int]:
        """T of every utterance."""
        return self.frames

    def batch(self, ids: Sequence[str], *, frames: int) -> np.ndarray:
        """Features [B, frames, L, D], padded with zeros."""
        read = {id_: np.load(self.paths[id_], mmap_mode="r") for id_ in ids}
        return Held(read).batch(ids, frames=frames)


class Computed(NamedTuple):
    """Features that are computed whenever they are needed, as SUPERB's own program does it."""

    compute: Compute
    recordings: Mapping[str, Recording]
    frames: Mapping[str, int]

    def lengths(self) -> Mapping[str, int]:
        """T of every utterance."""
        return self.frames

    def batch(self, ids: Sequence[str], *, frames: int) -> np.ndarray:
        """Features [B, frames, L, D], padded with zeros."""
        found = self.compute([self.recordings[id_] for id_ in dict.fromkeys(ids)])
        return Held(found.arrays).batch(ids, frames=frames)


class System(NamedTuple):
    """A kind of features: `name` as in results, what computes them, [L, D], and what they are of.

    `digest` differs where the features do.
    """

    name: str
    compute: Compute
    shape: tuple[int, int]
    digest: str


def systems(
    model: Pretrained, fresh: Pretrained, *, statistics: mfcc_deltas.MfccStatistics | None = None
) -> list[System]:
    """The network, MFCC, and the same network untrained.

    Args:
      model: The network.
      fresh: The same, untrained.
      statistics: What MFCC are normalised with; None for each utterance's own. Then their mean over
        an utterance is 0, and says nothing where a head takes that mean.

    Returns:
      The three.
    """
    config = model.config.model
    shape = (config.num_layers + 1, config.width)
    of_mfcc = functools.partial(in_memory.of_mfcc, model=model, statistics=statistics)
    digest = hashlib.sha256(repr(config.conv_layers).encode())
    for array in statistics or ():
        digest.update(np.ascontiguousarray(array))
    network = lambda name, of: System(
        name, functools.partial(in_memory.of_network, of), shape, of.fingerprint
    )
    return [
        network("codebook", model),
        System("mfcc", of_mfcc, (1, mfcc_deltas.WIDTH), digest.hexdigest()[:16]),
        network("untrained", fresh),
    ]


def checked(
    recordings: Sequence[Recording],
    *,
    model: Pretrained,
    on_bad: Bad,
    progress: in_memory.Progress = lambda seconds: None,
) -> list[Recording]:
    """Decodes every recording once: what is bad is known before anything is learnt.

    Args:
      recordings: Of known length or not.
      model: Says what is too short.
      on_bad: Called with a recording that cannot be used, and the reason; may raise.
      progress: Is told that one more is done.

    Returns:
      Those that can be used, with their lengths.
    """
    found = []
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
        found.append(recording._replace(num_samples=samples))
    return found


def open_source(
    system: System,
    recordings: Sequence[Recording],
    *,
    model: Pretrained,
    max_bytes: int,
    cache: Path | None,
    say: Callable[[str], None] = lambda text: None,
    progress: in_memory.Progress = lambda seconds: None,
) -> FeatureSource:
    """Features of recordings: in memory where they fit, else computed again for every batch.

    Args:
      system: Whose.
      recordings: Of `checked`.
      model: Says how many frames there are.
      max_bytes: Of memory.
      cache: Folder where they are written and found again, instead of both; None for none.
      say: Is told where it is not memory, or not in float32.
      progress: Is told the seconds of audio that are done.

    Returns:
      The source.

    Raises:
      OutputError: The folder cannot be written to, or the disk is full.
    """
    frames = {r.id: model.num_frames(r.num_samples) for r in recordings}
    if cache is not None:
        folder = cache / f"{system.name}-{system.digest}"
        paths = _written(system, recordings, folder, frames, progress=progress)
        return Stored(paths, frames)
    values = sum(frames.values()) * system.shape[0] * system.shape[1]
    if 2 * values <= max_bytes:
        dtype = np.float32 if 4 * values <= max_bytes else np.float16
        arrays: dict[str, np.ndarray] = {}
        for group in _groups(recordings):
            found = system.compute(group, progress=progress).arrays
            arrays |= {id_: array.astype(dtype, copy=False) for id_, array in found.items()}
        return Held(arrays)
    say(
        f"{system.name}: {2 * values / 2**30:.1f} GiB of features in float16, and --max_memory "
        f"allows {max_bytes / 2**30:.1f}: they are computed again for every batch; --cache=DIR "
        "keeps them on disk"
    )
    return Computed(system.compute, {r.id: r for r in recordings}, frames)


def _groups(recordings: Sequence[Recording]) -> Iterator[list[Recording]]:
    """Recordings of like length, the longest first, as many as are held at a time."""
    group, samples = [], 0
    for recording in sorted(recordings, key=lambda r: (-r.num_samples, r.id)):
        group.append(recording)
        samples += recording.num_samples
        if samples >= _GROUP_SECONDS * audio.SAMPLE_RATE:
            yield group
            group, samples = [], 0
    if group:
        yield group


def _written(
    system: System,
    recordings: Sequence[Recording],
    folder: Path,
    frames: Mapping[str, int],
    *,
    progress: in_memory.Progress,
) -> dict[str, Path]:
    """Writes the files that are not there; returns all of them."""
    outputs.remove_stale(folder)
    paths = {r.id: folder / f"{_name(r)}.npy" for r in recordings}
    layers, width = system.shape
    there = {r.id for r in recordings if _holds(paths[r.id], (layers, frames[r.id], width))}
    seconds = lambda some: sum(r.num_samples for r in some) / audio.SAMPLE_RATE
    progress(seconds([r for r in recordings if r.id in there]))
    for group in _groups([r for r in recordings if r.id not in there]):
        found = system.compute(group, progress=progress)
        for id_, array in found.arrays.items():
            with outputs.replacing(paths[id_], sync=False) as file:
                np.save(file, array.astype(np.float16, copy=False))
    return paths


def _name(recording: Recording) -> str:
    """Of the file of a recording: ids may hold anything."""
    text = f"{recording.name}\0{recording.id}\0{recording.num_samples}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _holds(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file holds an array of a shape; one that is cut or damaged does not."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.float16
