"""Features of utterances, computed once and held in memory: of networks and MFCC.

Shapes: T frames, L layers, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from dinosr_jax.config import parse
from dinosr_jax.data import audio
from dinosr_jax.data.threads import ahead
from dinosr_jax.evaluation.features import mfcc_deltas
from dinosr_jax.evaluation.utterances import in_chance_order
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Bad, Recording, refuse
from dinosr_jax.inference.selection import Network, Selection
from dinosr_jax.training.state import init_state

MAX_BYTES = 2**31
# larger batches than those of `extract` on a CPU: fewer lengths are compiled for a small corpus
OPTIONS = batched.Options(batch_seconds=120.0)
Progress = Callable[[float], None]  # is told the seconds of audio that are done


class Features(NamedTuple):
    """Arrays [L, T, D] of utterances by id, of the layers named (None: there are none)."""

    layers: tuple[int | None, ...]
    arrays: Mapping[str, np.ndarray]


def untrained(model: Pretrained, *, seed: int = 0) -> Pretrained:
    """A network of the same configuration, as it is before the first update."""
    config = parse(model.config.to_dict() | {"seed": seed})
    state = jax.jit(lambda: init_state(config, optimizer=optax.identity()))()
    parts = {"params": state.params, "teacher_params": state.teacher_params}
    return Pretrained(
        config, **parts, codebook=state.codebook, path="untrained", source="untrained"
    )


def room(
    recordings: Sequence[Recording],
    *,
    model: Pretrained,
    max_bytes: int = MAX_BYTES,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[Recording], type]:
    """What fits into memory: float32 if it does, else float16, else a part of the utterances.

    Args:
      recordings: Of known length.
      model: Whose layers 0 to L are to be held.
      max_bytes: Of memory.
      say: Is told where it is not everything in float32.

    Returns:
      The recordings, all or the first of them in an order of chance, and the type.
    """
    config = model.config.model
    values = (config.num_layers + 1) * config.width
    size = lambda r: model.num_frames(r.num_samples or len(r.load())) * values
    sizes = {r.id: size(r) for r in recordings}
    total = sum(sizes.values())
    if 4 * total <= max_bytes:
        return list(recordings), np.float32
    if 2 * total <= max_bytes:
        say(f"features are held in float16, {2 * total / 2**30:.1f} GiB")
        return list(recordings), np.float16
    kept, used = [], 0
    for recording in in_chance_order(recordings, key=lambda r: r.id):
        used += 2 * sizes[recording.id]
        if used > max_bytes and kept:
            break
        kept.append(recording)
    say(
        f"{len(kept)} of {len(recordings)} utterances are used, chosen by a hash of the id: the "
        f"features of all take {2 * total / 2**30:.1f} GiB in float16, and --max_memory allows "
        f"{max_bytes / 2**30:.1f}"
    )
    return kept, np.float16


def of_network(
    model: Pretrained,
    recordings: Sequence[Recording],
    *,
    layers: Sequence[int] | None = None,
    network: Network = "student",
    dtype: type = np.float32,
    lengths: batched.Lengths = "fixed",
    on_bad: Bad = refuse,
    progress: Progress = lambda seconds: None,
) -> Features:
    """The `block` of some layers of a network.

    Args:
      model: Of `load`.
      recordings: Whose features are computed.
      layers: None for all: 0 (what the first one reads) to L.
      network: Student or teacher.
      dtype: In which they are held.
      lengths: As in `batched.run`.
      on_bad: As in `batched.run`.
      progress: Is told the seconds of audio that are done.

    Returns:
      The features.
    """
    layers = tuple(range(model.config.model.num_layers + 1) if layers is None else layers)
    where = {"depth": max(layers), "network": network, "options": OPTIONS}
    forward = batched.Forward(model, Selection(layers, "block"), **where)
    told = lambda done, _: progress(done)
    parts = batched.run(forward, recordings, on_bad=on_bad, lengths=lengths, progress=told)
    arrays = {
        part.recording.id: np.stack(part.arrays).astype(dtype, copy=False)
        for part in batched.whole(parts)
    }
    return Features(layers, arrays)


def of_mfcc(
    recordings: Sequence[Recording],
    *,
    model: Pretrained,
    statistics: mfcc_deltas.MfccStatistics | None = None,
    on_bad: Bad = refuse,
    progress: Progress = lambda seconds: None,
) -> Features:
    """MFCC with deltas at the network's frames, as one layer without a number; in threads.

    They are normalised with `statistics`, or over each utterance.
    """
    conv_layers = model.config.model.conv_layers

    def compute(recording: Recording) -> tuple[np.ndarray, float]:
        waveform = recording.load()
        if not model.num_frames(len(waveform)):
            raise audio.AudioError(f"{recording.name}: too short for one frame")
        found = mfcc_deltas.mfcc(waveform, conv_layers=conv_layers, statistics=statistics)
        return found, len(waveform) / audio.SAMPLE_RATE

    arrays = {}
    for recording, future in ahead(compute, recordings):
        try:
            found, seconds = future.result()
        except (audio.AudioError, OSError) as error:
            on_bad(recording, str(error))
            continue
        arrays[recording.id] = found[None]
        progress(seconds)
    return Features((None,), arrays)


def mfcc_statistics(
    recordings: Sequence[Recording], *, model: Pretrained
) -> mfcc_deltas.MfccStatistics:
    """Mean and deviation of MFCC over the frames of some recordings."""
    nothing = mfcc_deltas.MfccStatistics(np.zeros(mfcc_deltas.WIDTH), np.ones(mfcc_deltas.WIDTH))
    found = of_mfcc(recordings, model=model, statistics=nothing)
    frames = np.concatenate([array[0] for array in found.arrays.values()]).astype(np.float64)
    return mfcc_deltas.MfccStatistics(frames.mean(axis=0), frames.std(axis=0))
