"""Decode, check and normalise one utterance.

soundfile and librosa are imported inside the functions: all else works where they are missing.

Shapes: S samples, C channels.
"""

import io
import struct
import threading
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from dinosr_jax.data.decoder import AudioError, Source, explained, opened

SAMPLE_RATE = 16_000
NORMALISE_EPSILON = 1e-5
_FULL_SCALE = 32768
_THREAD = threading.local()  # `work`: kept, so that malloc asks for no pages
_MIX_SAMPLES = 2**16  # at a time
_MOST_SAMPLES = 2**22  # that are read at a time where nothing says how many there are
_WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")  # RIFF, fmt and data, nothing else: 44 bytes

# Of the power that channels have together, what their sum keeps at least. Less is left of a channel
# and its inversion (a wrongly wired cable).
_LEAST_POWER = 0.02


class Decoded(NamedTuple):
    """A decoded and checked recording, and what the file holds."""

    waveform: np.ndarray  # [S] float32
    sample_rate: int
    num_channels: int
    missing: int  # samples at the end that the header claims, but are not there
    has_true_header: bool  # False where other programs may not read the whole file


def decode(source: Source, *, name: str) -> Decoded:
    """Decodes a recording as a whole, checks it, and mixes its channels down.

    Args:
      source: the bytes of an audio file, or its path, in any format of libsndfile.
      name: of the recording, in errors.

    Returns:
      The recording; full scale is 1.

    Raises:
      AudioError: the file is empty, not audio, truncated or corrupt, holds no samples, NaN or
        infinite samples, or silence, or its channels cancel each other.
    """
    with explained(name):
        stored = _decode(source, name=name)
        samples = stored.waveform
        if samples.dtype == np.int16:
            samples = np.multiply(samples, np.float32(1 / _FULL_SCALE), dtype=np.float32)
        mix = Mix()
        waveform = mix.down(samples)
        mix.check(name=name)
        if stored.num_channels > 1:
            check(waveform, name=name)
        return stored._replace(waveform=waveform)


def decode_samples(source: Source, *, name: str) -> tuple[np.ndarray, int]:
    """As `decode`, but leaves the samples as stored, and does not compare channels.

    Returns:
      Samples [S], or [S, C] where there are several channels: int16 if the file holds 16 bits in
      FLAC or WAV, else float32 (full scale is 1); their rate in Hz.
    """
    with explained(name):
        stored = _decode(source, name=name)
        return stored.waveform, stored.sample_rate


def _decode(source: Source, *, name: str) -> Decoded:
    """Decodes a recording as a whole and checks its samples, which stay as they are stored."""
    if isinstance(source, bytes) and (samples := _read_pcm16(source)) is not None:
        check(samples, name=name)
        return Decoded(samples, SAMPLE_RATE, 1, 0, True)
    with opened(source, name=name) as sound:
        # one more than there should be: the block is not full, and the last
        size = _MOST_SAMPLES if sound.num_samples is None else sound.num_samples + 1
        blocks = list(sound.blocks(size, dtype="int16" if sound.is_pcm16 else "float32"))
        samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        missing = sound.missing(name)
    check(samples, name=name)
    about = (sound.sample_rate, sound.num_channels, missing, sound.has_true_header)
    return Decoded(samples, *about)


class Mix:
    """The mean of a recording's channels, made block by block, and whether they cancel."""

    def __init__(self) -> None:
        self._count, self._sums, self._squares = 0, 0.0, 0.0  # of all channels and, last, their sum

    def down(self, samples: np.ndarray) -> np.ndarray:
        """Mixes a block [S] or [S, C] down to [S] float32."""
        if samples.ndim == 1:
            return samples
        for start in range(0, len(samples), _MIX_SAMPLES):
            part = samples[start : start + _MIX_SAMPLES].astype(np.float64)
            with np.errstate(invalid="ignore"):  # not finite: `check` of the samples says it
                part = np.concatenate([part, part.sum(axis=1, keepdims=True)], axis=1)
                self._sums += part.sum(axis=0)
                self._squares += np.einsum("sc,sc->c", part, part)
        self._count += len(samples)
        return samples.mean(axis=1, dtype=np.float32)

    def check(self, *, name: str) -> None:
        """Raises AudioError for channels that cancel each other; after the last block."""
        if not self._count:
            return
        with np.errstate(invalid="ignore"):
            *powers, left = self._squares / self._count - np.square(self._sums / self._count)
        if left < _LEAST_POWER * sum(powers):
            raise AudioError(
                f"{name}: its {len(powers)} channels cancel each other: mixed down they are "
                f"silent, or nearly ({max(left, 0.0) / sum(powers):.2%} of their power is left). "
                "One may be the other inverted: keep one of them, and write the file again."
            )


def check(waveform: np.ndarray, *, name: str) -> None:
    """Refuses a waveform [S] or [S, C] that cannot be learned from.

    Raises:
      AudioError: no samples, NaN or infinite samples, or all samples equal (silence).
    """
    if waveform.size == 0:
        raise AudioError(f"{name}: there are no samples. Record it again.")
    lowest, highest = waveform.min(), waveform.max()  # NaN if there is one
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        num_bad = int(waveform.size - np.isfinite(waveform).sum())
        raise AudioError(
            f"{name}: {num_bad} of {waveform.size} samples are NaN or infinite. "
            "Write the file again from its source."
        )
    if lowest == highest:
        raise AudioError(
            f"{name}: silent, all {waveform.size} samples are {waveform.flat[0]:g}. "
            "Delete it or record it again."
        )


def to_16khz(waveform: np.ndarray, *, sample_rate: int) -> np.ndarray:
    """A waveform [S] float32 at 16 kHz: [ceil(S * 16000 / sample_rate)]; itself if it is that."""
    if sample_rate == SAMPLE_RATE:
        return waveform
    import librosa

    resampled = librosa.resample(
        waveform, orig_sr=sample_rate, target_sr=SAMPLE_RATE, res_type="soxr_hq"
    )
    return resampled.astype(np.float32, copy=False)


def load(
    source: Source, *, name: str, on_missing: Callable[[float], None] | None = None
) -> np.ndarray:
    """Decodes and checks a recording, as `decode`, and brings it to 16 kHz mono.

    Args:
      source: the bytes of an audio file, or its path.
      name: of the recording, in errors.
      on_missing: called with the seconds that are missing at the end, where a few samples are.

    Returns:
      [S] float32 at 16 kHz, full scale 1, not normalised.
    """
    decoded = decode(source, name=name)
    if decoded.missing and on_missing:
        on_missing(decoded.missing / decoded.sample_rate)
    with explained(name):
        return to_16khz(decoded.waveform, sample_rate=decoded.sample_rate)


def missing_note(seconds: Collection[float]) -> str:
    """The note on recordings at whose ends so many seconds are missing."""
    return (
        f"{len(seconds)} recordings end before the length in their headers, by "
        f"{max(seconds) * 1000:.2g} ms at most, and are kept"
    )


def normalise(
    waveform: np.ndarray, *, crop: slice = slice(None), out: np.ndarray | None = None
) -> np.ndarray:
    """Gives a waveform mean 0 and variance 1 over its own samples, and crops it.

    Equals fairseq's `F.layer_norm(wav, wav.shape)` (`task.normalize: true`). Sums of int16 samples
    are exact: the result is the same on every machine.

    Args:
      waveform: [S], one whole utterance, float32 (full scale 1) or int16.
      crop: the part to return; mean and variance are those of the whole.
      out: as long as the crop, float32: written to and returned; None makes a new array.

    Returns:
      [S] or the crop, float32: (x - mean) / sqrt(variance + 1e-5).
    """
    scale = _FULL_SCALE if waveform.dtype == np.int16 else 1
    if len(getattr(_THREAD, "work", ())) < len(waveform):
        _THREAD.work = np.empty(len(waveform))
    work = _THREAD.work[: len(waveform)]
    work[:] = waveform
    squares = np.einsum("s,s->", work, work)  # not dot: BLAS would start its own threads
    mean = work.sum() / len(waveform)
    variance = max(squares / len(waveform) - mean * mean, 0.0) / scale**2
    factor = 1 / (scale * np.sqrt(variance + NORMALISE_EPSILON))
    part = waveform[crop]
    out = np.empty(len(part), np.float32) if out is None else out
    np.subtract(part, np.float32(mean), out=out, dtype=np.float32)
    out *= np.float32(factor)
    return out


def encode_flac(waveform: np.ndarray) -> bytes:
    """The bytes of a 16-bit FLAC file of a waveform [S] at 16 kHz; as of `encode_pcm16`."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, _to_int16(waveform), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def encode_pcm16(waveform: np.ndarray) -> bytes:
    """The bytes of a WAV file of a waveform at 16 kHz, which `decode` reads without libsndfile.

    Args:
      waveform: [S] int16 (kept bit for bit), or float32 (rounded, clipped at full scale).
    """
    samples = _to_int16(waveform).astype("<i2", copy=False).tobytes()
    return _wav_header(len(samples)) + samples


def _to_int16(waveform: np.ndarray) -> np.ndarray:
    """Rounds float32 samples to 16 bits, clipped at full scale; leaves int16 as it is."""
    if waveform.dtype == np.int16:
        return waveform
    scaled = np.round(waveform.astype(np.float64) * 32768)
    return np.clip(scaled, -32768, 32767).astype(np.int16)


def _wav_header(num_bytes: int) -> bytes:
    """The header of a WAV file of 16 kHz, mono, 16 bits, with so many bytes of samples."""
    form = (1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)  # PCM, channels, rate, bytes: second, frame
    riff_bytes = num_bytes + _WAV_HEADER.size - 8
    return _WAV_HEADER.pack(b"RIFF", riff_bytes, b"WAVE", b"fmt ", 16, *form, b"data", num_bytes)


def _read_pcm16(content: bytes) -> np.ndarray | None:
    """Samples [S] int16 of what `encode_pcm16` wrote, whole; None for any other file."""
    num_bytes = len(content) - _WAV_HEADER.size
    if num_bytes <= 0 or num_bytes % 2 or num_bytes >= 2**31:
        return None
    if content[: _WAV_HEADER.size] != _wav_header(num_bytes):
        return None
    samples = np.frombuffer(content, "<i2", offset=_WAV_HEADER.size)
    return samples.astype(np.int16, copy=False)
