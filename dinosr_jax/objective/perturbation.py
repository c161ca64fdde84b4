"""Another voice and another channel for the student; phones and their times stay.

The teacher hears the recording, the student the same words as if from a longer or shorter vocal
tract, through another microphone. A student that still predicts the teacher's codes has learnt to
leave speaker and channel out. Perturbing formants to that end is due to NANSY (Choi et al., 2021)
and ContentVec (Qian et al., 2022).

Shapes: B batch, S samples, T windows, K samples of a window, F frequencies, C cosines.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_WINDOW = 256  # samples of 16 kHz, 16 ms; neighbours overlap by half
_ENVELOPE = 24  # cepstral coefficients of the spectral envelope, as far as 1.5 ms: below any pitch
_CHANNEL = 4  # cosines over frequency that a channel is made of
_FLOOR = 1e-4  # of the power of a frequency, about 70 dB under that of speech of variance 1
_LIMIT = 3.0  # of the change of the envelope: 26 dB
_NEPERS = np.log(10) / 20  # in a decibel


@functools.lru_cache(maxsize=1)
def _matrices() -> tuple[np.ndarray, ...]:
    """Of windows: DFT [K, 2 F], and its inverse [2 F, K]. Of spectra: cepstrum [F, C]."""
    time, frequency = np.arange(_WINDOW), np.arange(_WINDOW // 2 + 1)
    root = np.sin(np.pi * time / _WINDOW)  # its square, a Hann window, adds up to 1
    angle = 2 * np.pi * np.outer(time, frequency) / _WINDOW
    fourier = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
    signs = np.where(frequency % (_WINDOW // 2) == 0, 1, 2)  # a frequency counts for its negative
    inverse = fourier.T * np.tile(signs, 2)[:, None] / _WINDOW
    cepstrum = np.cos(angle[:_ENVELOPE].T) * signs[:, None] / _WINDOW
    cepstrum[:, 1:] *= 2
    matrices = (root[:, None] * fourier, inverse * root, cepstrum)
    return tuple(x.astype(np.float32) for x in matrices)


@jax.named_scope("perturbation")
def perturb(key: Array, waveforms: Array, *, formants: float, channel_db: float) -> Array:
    """Moves the formants of every utterance, and filters it.

    An utterance's formants are multiplied by exp(u log(1 + `formants`)), u uniform in [-1, 1]: its
    spectral envelope is stretched, and its harmonics stay where they are. The gain of its channel
    is a sum of 4 cosines over frequency. Products of matrices take the place of FFTs, which would
    not be cut over devices.

    Args:
      key: PRNG key.
      waveforms: [B, S] float32, 16 kHz, normalised per utterance.
      formants: Formants move by a factor of 1 + this at most, up or down.
      channel_db: Standard deviation of each of the channel's cosines, in dB.

    Returns:
      [B, S] float32, each utterance with the standard deviation that it had.
    """
    size, samples = waveforms.shape
    fourier, inverse, cepstrum = _matrices()
    hop, frequency = _WINDOW // 2, jnp.arange(_WINDOW // 2 + 1)[None]
    formant_key, channel_key = jax.random.split(key)
    shift = jax.random.uniform(formant_key, (size, 1), minval=-1, maxval=1)
    source = jnp.minimum(frequency * jnp.exp(-shift * jnp.log1p(formants)), hop)  # [B, F]
    envelope = lambda at: jnp.cos(jnp.pi / hop * jnp.multiply.outer(at, jnp.arange(_ENVELOPE)))
    channel = jax.random.normal(channel_key, (size, _CHANNEL)) * channel_db * _NEPERS
    waves = jnp.cos(jnp.pi / hop * jnp.outer(jnp.arange(1, _CHANNEL + 1), frequency))  # [C, F]

    blocks = -(-samples // hop)
    padded = jnp.pad(waveforms, ((0, 0), (hop, (blocks + 1) * hop - samples)))
    padded = padded.reshape(size, blocks + 2, hop)
    with jax.default_matmul_precision("highest"):  # rounding would be heard as noise
        windows = jnp.concatenate([padded[:, :-1], padded[:, 1:]], axis=-1)  # [B, T, K]
        spectrum = (windows @ fourier).reshape(size, blocks + 1, 2, -1)  # [B, T, 2, F]
        log = 0.5 * jnp.log(jnp.sum(jnp.square(spectrum), axis=2) + _FLOOR)  # [B, T, F]
        stretch = envelope(source) - envelope(frequency)  # [B, F, C]
        change = jnp.einsum("btc,bfc->btf", log @ cepstrum, stretch)
        gain = jnp.exp(jnp.clip(change, -_LIMIT, _LIMIT) + (channel @ waves)[:, None])
        changed = (spectrum * gain[:, :, None]).reshape(size, blocks + 1, -1) @ inverse
    out = changed[:, :-1, hop:] + changed[:, 1:, :hop]  # [B, blocks, hop]
    out = out.reshape(size, -1)[:, :samples]
    deviation = lambda x: jnp.std(x, axis=1, keepdims=True)
    return out * deviation(waveforms) / jnp.maximum(deviation(out), 1e-5)
