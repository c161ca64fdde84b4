"""Features of utterances, computed one after the other: of networks and MFCC.

Shapes: T frames, L layers, D width.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import optax

from dinosr_jax.config import parse
from dinosr_jax.data import audio
from dinosr_jax.data.threads import ahead
from dinosr_jax.evaluation.features import mfcc_deltas
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording, refuse
from dinosr_jax.inference.selection import Selection
from dinosr_jax.training.state import init_state

# larger batches than those of `extract` on a CPU: fewer lengths are compiled for a small corpus
OPTIONS = batched.Options(batch_seconds=120.0)
Done = Callable[[float], None]  # called with how much more is done: seconds of audio, or steps


def untrained(model: Pretrained, *, seed: int = 0) -> Pretrained:
    """A network of the same configuration, as it is before the first update."""
    config = parse(model.config.to_dict() | {"seed": seed})
    state = jax.jit(lambda: init_state(config, optimizer=optax.identity()))()
    parts = {"params": state.params, "teacher_params": state.teacher_params}
    return Pretrained(
        config, **parts, codebook=state.codebook, path="untrained", source="untrained"
    )


def of_network(
    model: Pretrained,
    recordings: Sequence[Recording],
    *,
    layers: Sequence[int] | None = None,
    lengths: batched.Lengths = "fixed",
    progress: Done = lambda seconds: None,
) -> Iterator[tuple[str, np.ndarray]]:
    """The student's `block` of some layers (None: 0, what the first one reads, to L).

    Yields (id, [L, T, D] float32), the longest first; raises AudioError at a bad recording.
    `lengths` is as in `batched.run`.
    """
    layers = tuple(range(model.config.model.num_layers + 1) if layers is None else layers)
    where = {"depth": max(layers), "network": "student", "options": OPTIONS}
    forward = batched.Forward(model, Selection(layers, "block"), **where)
    done = lambda seconds, _: progress(seconds)
    parts = batched.run(forward, recordings, on_bad=refuse, lengths=lengths, progress=done)
    for part in batched.whole(parts):
        yield part.recording.id, np.stack(part.arrays)


def of_mfcc(
    recordings: Sequence[Recording],
    *,
    model: Pretrained,
    statistics: mfcc_deltas.MfccStatistics | None = None,
    progress: Done = lambda seconds: None,
) -> Iterator[tuple[str, np.ndarray]]:
    """MFCC with deltas at the network's frames, as one layer without a number; in threads.

    They are normalised with `statistics`, or over each utterance. Yields (id, [1, T, D] float32);
    raises AudioError at a bad recording.
    """
    conv_layers = model.config.model.conv_layers

    def compute(recording: Recording) -> tuple[np.ndarray, float]:
        waveform = recording.load()
        if not model.num_frames(len(waveform)):
            raise audio.AudioError(f"{recording.name}: too short for one frame")
        array = mfcc_deltas.mfcc(waveform, conv_layers=conv_layers, statistics=statistics)
        return array[None], len(waveform) / audio.SAMPLE_RATE

    for recording, future in ahead(compute, recordings):
        array, seconds = future.result()
        yield recording.id, array
        progress(seconds)


def mfcc_statistics(
    recordings: Sequence[Recording], *, model: Pretrained
) -> mfcc_deltas.MfccStatistics:
    """Mean and deviation of MFCC over the frames of some recordings."""
    nothing = mfcc_deltas.MfccStatistics(np.zeros(mfcc_deltas.WIDTH), np.ones(mfcc_deltas.WIDTH))
    arrays = [array[0] for _, array in of_mfcc(recordings, model=model, statistics=nothing)]
    frames = np.concatenate(arrays).astype(np.float64)
    return mfcc_deltas.MfccStatistics(frames.mean(axis=0), frames.std(axis=0))
