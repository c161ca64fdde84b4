"""MFCC with deltas, frame by frame where the network has its frames: the baseline of old.

Shapes: S samples, T frames.
"""

from typing import NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.model.feature_encoder import ConvLayers, num_frames, receptive_field

NUM_COEFFICIENTS = 13
WIDTH = 3 * NUM_COEFFICIENTS  # with deltas and delta-deltas
_WINDOW_SAMPLES = 400  # 25 ms
_NUM_MELS = 40
_DELTA_FRAMES = 9
_EPSILON = 1e-5


class MfccStatistics(NamedTuple):
    """Mean and standard deviation of coefficients, [39] each."""

    mean: np.ndarray
    deviation: np.ndarray


def mfcc(
    waveform: np.ndarray, *, conv_layers: ConvLayers, statistics: MfccStatistics | None = None
) -> np.ndarray:
    """Coefficients with first and second differences, normalised: [T, 39] float32.

    Args:
      waveform: [S] float32 at 16 kHz, one whole utterance, of any level.
      conv_layers: (channels, kernel, stride) of the network's convolutions: frame i is the 25 ms
        around the middle of what the network's frame i reads (sample 200 + 320 i as published).
      statistics: What they are normalised with; None for those of the utterance itself, which give
        mean 0 and variance 1 over the frames.
    """
    import librosa

    field, hop = receptive_field(conv_layers)
    frames = num_frames(len(waveform), conv_layers)
    first = field // 2 - _WINDOW_SAMPLES // 2
    wave = audio.normalise(waveform)
    wave = wave[first:] if first >= 0 else np.pad(wave, (-first, 0))
    needed = (frames - 1) * hop + _WINDOW_SAMPLES
    wave = np.pad(wave, (0, max(0, needed - len(wave))))[:needed]
    sizes = {"n_fft": _WINDOW_SAMPLES, "hop_length": hop, "center": False, "n_mels": _NUM_MELS}
    static = librosa.feature.mfcc(
        y=wave, sr=audio.SAMPLE_RATE, n_mfcc=NUM_COEFFICIENTS, htk=True, **sizes
    )
    delta = lambda order: librosa.feature.delta(
        static, width=_DELTA_FRAMES, order=order, mode="nearest"
    )
    coefficients = np.concatenate([static, delta(1), delta(2)]).T  # [T, 39]
    own = statistics or MfccStatistics(coefficients.mean(axis=0), coefficients.std(axis=0))
    centred = coefficients - own.mean[None]
    return (centred / (own.deviation[None] + _EPSILON)).astype(np.float32)
