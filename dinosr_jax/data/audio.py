"""Decode, check and normalise one utterance.

soundfile and librosa are imported inside the functions, so that the module (and what needs only
`SAMPLE_RATE` or `normalise`) imports where they are missing.

Shapes: S samples, C channels.
"""

import contextlib
import io
import os
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SAMPLE_RATE = 16_000
NORMALISE_EPSILON = 1e-5
_FULL_SCALE = 32768
_THREAD = threading.local()  # `work`: kept, so that malloc asks for no pages
_WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")  # RIFF, fmt and data, nothing else: 44 bytes

# Headers written to a pipe declare a length near the largest integer: no claim to be checked.
_OPEN_ENDED_BYTES = 0x7FF0_0000
_OGG_PAGE_HEADER_BYTES = 27
_OGG_END_OF_STREAM = 0x04


class AudioError(ValueError):
    """One recording cannot be used; the message names it, says why, and what to do."""


class Decoded(NamedTuple):
    """A decoded and checked recording: `waveform` [S] float32, and what the file holds."""

    waveform: np.ndarray
    sample_rate: int
    num_channels: int


def decode(source: bytes | str | os.PathLike, *, name: str) -> Decoded:
    """Decodes a recording as a whole, checks it, and mixes its channels down.

    Args:
      source: the bytes of an audio file, or its path (whatever libsndfile reads: flac, wav, ogg,
        opus, mp3, ...).
      name: how errors call it.

    Returns:
      waveform [S] float32 (full scale is 1), its sample rate in Hz, its number of channels.

    Raises:
      AudioError: the file is empty, not audio, truncated or corrupt, or holds no samples, NaN or
        infinite samples, or silence.
    """
    samples, sample_rate = decode_samples(source, name=name)
    num_channels = 1 if samples.ndim == 1 else samples.shape[1]
    if samples.dtype == np.int16:
        samples = np.multiply(samples, np.float32(1 / _FULL_SCALE), dtype=np.float32)
    waveform = samples if num_channels == 1 else samples.mean(axis=1, dtype=np.float32)
    if num_channels > 1:
        check(waveform, name=name)  # channels may cancel each other
    return Decoded(waveform, sample_rate, num_channels)


def decode_samples(source: bytes | str | os.PathLike, *, name: str) -> tuple[np.ndarray, int]:
    """Decodes a recording as a whole and checks it; as `decode`, but leaves the samples as stored.

    Args:
      source: as `decode`.
      name: how errors call it.

    Returns:
      Samples [S], or [S, C] where there are several channels: int16 if the file holds 16 bits in
      FLAC or WAV, else float32 (full scale is 1); their rate in Hz.

    Raises:
      AudioError: as `decode`.
    """
    content = source if isinstance(source, bytes) else _read_bytes(source, name=name)
    if not content:
        raise AudioError(f"{name}: the file is empty (0 bytes). Copy it again or delete it.")
    if content.startswith(b"RIFF") and (samples := _read_pcm16(content)) is not None:
        check(samples, name=name)
        return samples, SAMPLE_RATE
    import soundfile

    try:
        with _opened(content) as source, soundfile.SoundFile(source, closefd=False) as file:
            lossless = file.format in ("FLAC", "WAV") and file.subtype == "PCM_16"
            samples = file.read(dtype="int16" if lossless else "float32")  # [S] or [S, C]
            declared, log, sample_rate = file.frames, file.extra_info, file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f"{name}: libsndfile cannot decode its {len(content):,} bytes "
            f"({_without_path(str(error))}): the file is truncated, corrupt or not audio. "
            "Copy it again, or convert it to FLAC."
        ) from None
    if missing := missing_part(content, log=log, num_read=len(samples), num_declared=declared):
        raise AudioError(f"{name}: the file is truncated ({missing}). Copy it again.")
    check(samples, name=name)
    return samples, sample_rate


def check(waveform: np.ndarray, *, name: str) -> None:
    """Refuses a waveform that cannot be learned from.

    Args:
      waveform: [S] or [S, C], any real dtype.
      name: how errors call it.

    Raises:
      AudioError: no samples, NaN or infinite samples, or all samples equal (silence).
    """
    if waveform.size == 0:
        raise AudioError(f"{name}: the file holds no samples. Delete it or record it again.")
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
    """Mixes a waveform down and brings it to 16 kHz.

    Args:
      waveform: [S] or [S, C] float32.
      sample_rate: of the waveform, in Hz.

    Returns:
      [ceil(S * 16000 / sample_rate)] float32; the same array where there is nothing to do.
    """
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1, dtype=np.float32)
    if sample_rate == SAMPLE_RATE:
        return waveform
    import librosa

    resampled = librosa.resample(
        waveform, orig_sr=sample_rate, target_sr=SAMPLE_RATE, res_type="soxr_hq"
    )
    return resampled.astype(np.float32, copy=False)


def load(source: bytes | str | os.PathLike, *, name: str) -> np.ndarray:
    """Decodes and checks a recording, and brings it to 16 kHz mono.

    Args:
      source: the bytes of an audio file, or its path.
      name: how errors call it.

    Returns:
      [S] float32 at 16 kHz, full scale 1, not normalised.

    Raises:
      AudioError: as `decode`.
    """
    decoded = decode(source, name=name)
    return to_16khz(decoded.waveform, sample_rate=decoded.sample_rate)


def normalise(
    waveform: np.ndarray, *, crop: slice = slice(None), out: np.ndarray | None = None
) -> np.ndarray:
    """Gives a waveform mean 0 and variance 1 over its own samples, and crops it.

    Equals fairseq's `F.layer_norm(wav, wav.shape)` (`task.normalize: true`). The sums of int16
    samples are exact, so that the result is the same on every machine.

    Args:
      waveform: [S], one whole utterance, float32 (full scale 1) or int16.
      crop: the part to return; mean and variance are those of the whole.
      out: as long as the crop, float32: written to and returned; None makes a new array.

    Returns:
      [S], or as long as the crop, float32: (x - mean) / sqrt(variance + 1e-5).
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
    """Codes a 16 kHz waveform as 16-bit FLAC.

    Args:
      waveform: [S] int16 (kept bit for bit), or float32 (rounded, clipped at full scale).

    Returns:
      The bytes of a FLAC file.
    """
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, _to_int16(waveform), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def encode_pcm16(waveform: np.ndarray) -> bytes:
    """Stores a 16 kHz waveform as the samples themselves, after the 44 bytes of a WAV header.

    Args:
      waveform: [S] int16 (kept bit for bit), or float32 (rounded, clipped at full scale).

    Returns:
      The bytes of a WAV file, which `decode` reads without libsndfile.
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
    if num_bytes < 0 or num_bytes % 2 or num_bytes >= _OPEN_ENDED_BYTES:
        return None
    if content[: _WAV_HEADER.size] != _wav_header(num_bytes):
        return None
    samples = np.frombuffer(content, "<i2", offset=_WAV_HEADER.size)
    return samples.astype(np.int16, copy=False)


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[int | io.BytesIO]:
    """What libsndfile reads: a descriptor where the system has files in memory.

    From a BytesIO every block would take Python's lock: 15 % less audio a second with two threads.
    """
    if not hasattr(os, "memfd_create"):
        yield io.BytesIO(content)
        return
    with open(os.memfd_create("audio"), "w+b") as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def _read_bytes(path: str | os.PathLike, *, name: str) -> bytes:
    """Reads a file, or says as an AudioError why it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise AudioError(
            f"{name}: cannot be read ({error.strerror}). Check the file and its permissions."
        ) from None


def _without_path(message: str) -> str:
    """Cuts "Error opening <object at 0x...>: reason" down to its reason."""
    return message.rsplit(": ", 1)[-1].strip().rstrip(".")


def missing_part(content: bytes, *, log: str, num_read: int, num_declared: int) -> str:
    """Says which part of a file is missing, or '' if it is whole.

    `content` may leave out the middle of the file; `log` is libsndfile's, the numbers are samples.

    libsndfile opens a truncated wav, ogg or mp3 without complaint and returns fewer samples: what
    the header claims is compared with what is there.
    """
    if num_read < num_declared:
        return f"{num_read} of {num_declared} samples"
    for declared, found in re.findall(r"(\d+) \(should be (\d+)\)", log):
        if int(found) + 1 < int(declared) < _OPEN_ENDED_BYTES:  # 1: a missing padding byte
            return f"{found} of {declared} bytes"
    if content.startswith(b"OggS"):
        page = content[content.rfind(b"OggS") :]
        if len(page) < _OGG_PAGE_HEADER_BYTES or not page[5] & _OGG_END_OF_STREAM:
            return "its last Ogg page does not end the stream"
        segments_end = _OGG_PAGE_HEADER_BYTES + page[26]
        if len(page) < segments_end + sum(page[_OGG_PAGE_HEADER_BYTES:segments_end]):
            return "its last Ogg page is incomplete"
    return ""
