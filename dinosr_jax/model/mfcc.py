"""Mel-frequency cepstral coefficients inside the network, in the place of its convolutions.

Shapes: B batch, S samples, T frames, K samples of a window, F frequencies, M bands, C coefficients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.model.convolutions import strided_conv

Array = jax.Array

_SAMPLE_RATE = 16_000
_NUM_MELS = 40
_FLOOR = 1e-2  # of a band's energy, 40 to 50 dB under that of speech of variance 1


@functools.lru_cache(maxsize=4)
def _mfcc_matrices(num_coefficients: int, window: int) -> tuple[np.ndarray, ...]:
    """Real and imaginary part of a Hann-windowed DFT [K, 1, 2 F], bands [F, M], cosines [M, C]."""
    time, frequency = np.arange(window), np.arange(window // 2 + 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * time / window)
    angle = 2 * np.pi * np.outer(time, frequency) / window
    fourier = hann[:, None] * np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # HTK's
    edges = 700 * (10 ** (np.linspace(0, mel(_SAMPLE_RATE / 2), _NUM_MELS + 2) / 2595) - 1)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    hertz = (frequency * _SAMPLE_RATE / window)[:, None]
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    bands = np.maximum(0, np.minimum(rising, falling))
    order, band = np.arange(num_coefficients), np.arange(_NUM_MELS)[:, None]
    cosines = np.cos(np.pi / _NUM_MELS * (band + 0.5) * order) * np.sqrt(2 / _NUM_MELS)
    cosines[:, 0] /= np.sqrt(2)
    return tuple(x.astype(np.float32) for x in (fourier[:, None], bands, cosines))


def mfcc(waveforms: Array, *, num_coefficients: int, window: int, hop: int) -> Array:
    """Mel-frequency cepstral coefficients of normalised waveforms [B, S] float32, 16 kHz.

    `window` and `hop` are in samples.

    Returns:
      [B, T, C] float32, C of 40 at most; the first is the log energy.
    """
    fourier, bands, cosines = _mfcc_matrices(num_coefficients, window)
    with jax.default_matmul_precision("highest"):  # log of small differences of large numbers
        spectrum = strided_conv(waveforms[..., None], jnp.asarray(fourier), stride=hop)
        real, imaginary = jnp.split(spectrum, 2, axis=-1)
        power = jnp.square(real) + jnp.square(imaginary)
        return jnp.log(power @ bands + _FLOOR) @ cosines


def normalise(cepstra: Array, padding_mask: Array | None = None) -> Array:
    """Cepstra [B, T, C] of mean 0 and variance 1 over the frames of an utterance; zero on padding.

    It takes much of what is the speaker's and the recording's out of them. `padding_mask` [B, T] is
    True on padding, which does not count; None where there is none.
    """
    if padding_mask is None:
        return jax.nn.standardize(cepstra, axis=-2, epsilon=1e-5)
    real = jnp.broadcast_to(~padding_mask[..., None], cepstra.shape)
    return jnp.where(real, jax.nn.standardize(cepstra, axis=-2, epsilon=1e-5, where=real), 0)
