"""Long recordings, decoded a block at a time: never held as a whole.

Shapes: S samples, C channels.
"""

import concurrent.futures
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.inference.inputs import Bad, Recording

_BLOCK_SECONDS = 30


class Header(NamedTuple):
    """What the header of a file says; `num_samples` is the length at 16 kHz."""

    num_samples: int
    sample_rate: int
    num_channels: int


def read_header(recording: Recording) -> Header | None:
    """The header of a recording, or None where there is none that libsndfile reads."""
    if isinstance(recording.source, np.ndarray):
        return Header(len(recording.source), audio.SAMPLE_RATE, 1)
    if callable(recording.source) and recording.num_samples is not None:
        return Header(recording.num_samples, audio.SAMPLE_RATE, 1)
    import soundfile

    try:
        info = soundfile.info(_opened(recording))
    except (audio.AudioError, RuntimeError, OSError):
        return None
    if info.samplerate <= 0 or not 0 <= info.frames < 2**48:
        return None
    length = -(-info.frames * audio.SAMPLE_RATE // info.samplerate)
    return Header(length, info.samplerate, info.channels)


class Scan(NamedTuple):
    """Length at 16 kHz, mean, and the factor that brings the variance to 1."""

    num_samples: int
    mean: np.float32
    factor: np.float32


def scan(recording: Recording) -> Scan:
    """Reads a recording once, block by block, for its statistics; as `audio.normalise` has them.

    Raises:
      AudioError: It is truncated, corrupt, silent, NaN, ...
    """
    count, total, squares, lowest, highest = 0, 0.0, 0.0, np.inf, -np.inf
    for block in blocks(recording):
        if not np.isfinite(block).all():
            audio.check(block, name=recording.name)
        wide = block.astype(np.float64)
        count += len(wide)
        total += float(wide.sum())
        squares += float(np.einsum("s,s->", wide, wide))
        lowest, highest = min(lowest, wide.min()), max(highest, wide.max())
    if count == 0 or lowest == highest:
        audio.check(np.full(min(count, 1), lowest), name=recording.name)
    mean = total / count
    variance = max(squares / count - mean * mean, 0.0)
    factor = 1 / np.sqrt(variance + audio.NORMALISE_EPSILON)
    return Scan(count, np.float32(mean), np.float32(factor))


def blocks(recording: Recording) -> Iterator[np.ndarray]:
    """Decodes a recording: [S] float32 at 16 kHz, mixed down, half a minute at a time.

    Raises:
      AudioError: It cannot be decoded, or ends too early.
    """
    if isinstance(recording.source, np.ndarray):
        size = _BLOCK_SECONDS * audio.SAMPLE_RATE
        wave = recording.source
        yield from (wave[start : start + size] for start in range(0, len(wave), size))
        return
    import soundfile

    source = _opened(recording)
    try:
        with soundfile.SoundFile(source) as file:
            rate, read, given = file.samplerate, 0, 0
            resample = _resampler(rate)
            while True:
                block = file.read(_BLOCK_SECONDS * rate, dtype="float32", always_2d=True)
                read += len(block)
                mono = block[:, 0] if block.shape[1] == 1 else block.mean(1, dtype=np.float32)
                last = len(block) < _BLOCK_SECONDS * rate
                ready = resample(mono, last)
                if last:  # as many as `audio.to_16khz` gives
                    rest = -(-read * audio.SAMPLE_RATE // rate) - given
                    ready = np.pad(ready[:rest], (0, max(rest - len(ready), 0)))
                given += len(ready)
                if len(ready):
                    yield ready
                if last:
                    break
            log, declared = file.extra_info, file.frames
    except RuntimeError as error:
        raise audio.AudioError(
            f"{recording.name}: libsndfile cannot decode it ({str(error).rsplit(': ', 1)[-1]}): "
            "the file is truncated, corrupt or not audio. Copy it again."
        ) from None
    missing = audio.missing_part(_ends(source), log=log, num_read=read, num_declared=declared)
    if missing:
        raise audio.AudioError(
            f"{recording.name}: the file is truncated ({missing}). Copy it again."
        )


def _resampler(rate: int):
    if rate == audio.SAMPLE_RATE:
        return lambda block, last: block
    import soxr

    stream = soxr.ResampleStream(rate, audio.SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    return lambda block, last: stream.resample_chunk(np.ascontiguousarray(block), last=last)


def _opened(recording: Recording) -> bytes | io.BytesIO:
    """Path or content; the path as bytes, since soundfile refuses names that are no UTF-8."""
    source = recording.read()
    return io.BytesIO(source) if isinstance(source, bytes) else os.fsencode(source)


def _ends(source: bytes | io.BytesIO, *, size: int = 2**17) -> bytes:
    """Start and end of a file, at most twice `size`."""
    if isinstance(source, io.BytesIO):
        return source.getvalue()
    with open(source, "rb") as file:
        start = file.read(size)
        file.seek(max(os.path.getsize(source) - size, len(start)))
        return start + file.read()


def by_length(
    recordings: Iterable[Recording], *, on_bad: Bad, num_workers: int | None = None
) -> list[tuple[Recording, Header | None]]:
    """Recordings and their headers, longest first; those that load without a header last.

    What cannot be read at all goes to `on_bad` before anything is computed, in the given order.
    """
    recordings, usable = list(recordings), []
    with concurrent.futures.ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        headers = list(pool.map(read_header, recordings))
    for recording, header in zip(recordings, headers, strict=True):
        try:
            if header is None:
                recording.load()
        except (audio.AudioError, OSError) as error:
            on_bad(recording, str(error))
            continue
        usable.append((recording, header))
    return sorted(usable, key=lambda pair: -pair[1].num_samples if pair[1] else 1)


def notes(headers: Sequence[Header]) -> list[str]:
    """What is resampled and mixed down, to be said once."""
    rates = sorted({h.sample_rate for h in headers if h.sample_rate != audio.SAMPLE_RATE})
    stereo = sum(h.num_channels > 1 for h in headers)
    found = []
    if rates:
        count = sum(h.sample_rate in rates for h in headers)
        found.append(f"{count} recordings are resampled to 16000 Hz, from {rates} Hz")
    if stereo:
        found.append(f"{stereo} recordings have several channels, which are mixed down")
    return found
