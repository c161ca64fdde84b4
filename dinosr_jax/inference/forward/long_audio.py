"""Long recordings, decoded a block at a time: never held as a whole.

Shapes: S samples, C channels.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.decoder import opened
from dinosr_jax.inference.recordings import Bad, Recording

_BLOCK_SECONDS = 30
_NUM_NAMED = 20


class Header(NamedTuple):
    """Of a file, or of decoding it where its header has no length; the length is at 16 kHz."""

    num_samples: int
    sample_rate: int
    num_channels: int


def read_header(recording: Recording) -> Header:
    """The header of a recording; raises AudioError where it cannot be opened or is empty."""
    if isinstance(recording.source, np.ndarray):
        return Header(len(recording.source), audio.SAMPLE_RATE, 1)
    if callable(recording.source) and recording.num_samples is not None:
        return Header(recording.num_samples, audio.SAMPLE_RATE, 1)
    with opened(recording.read(), name=recording.name) as sound:
        rate, count = sound.sample_rate, sound.num_samples
        if not count:
            block = _BLOCK_SECONDS * rate
            count = sum(len(samples) for samples in sound.blocks(block, dtype="float32"))
            sound.missing(recording.name)
        return Header(-(-count * audio.SAMPLE_RATE // rate), rate, sound.num_channels)


class Scan(NamedTuple):
    """Length at 16 kHz, mean, and the factor that brings the variance to 1."""

    num_samples: int
    mean: np.float32
    factor: np.float32


def scan(recording: Recording, *, on_missing: Callable[[float], None] | None = None) -> Scan:
    """Reads a recording once, block by block, for its statistics; as `audio.normalise` has them.

    Raises:
      AudioError: It is truncated, corrupt, silent, NaN, ...
    """
    count, total, squares, lowest, highest = 0, 0.0, 0.0, np.inf, -np.inf
    for block in blocks(recording, on_missing=on_missing):
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


def blocks(
    recording: Recording, *, on_missing: Callable[[float], None] | None = None
) -> Iterator[np.ndarray]:
    """Decodes a recording: [S] float32 at 16 kHz, mixed down, half a minute at a time.

    Raises:
      AudioError: It cannot be decoded, ends too early, or its channels cancel each other.
    """
    if isinstance(recording.source, np.ndarray):
        size, wave = _BLOCK_SECONDS * audio.SAMPLE_RATE, recording.source
        yield from (wave[start : start + size] for start in range(0, len(wave), size))
        return
    with opened(recording.read(), name=recording.name) as sound:
        rate, read, given, mix = sound.sample_rate, 0, 0, audio.Mix()
        resample = _resampler(rate)
        for block in sound.blocks(_BLOCK_SECONDS * rate, dtype="float32"):
            read += len(block)
            ready = resample(mix.down(block), False)
            given += len(ready)
            if len(ready):
                yield ready
        ready = resample(np.zeros(0, np.float32), True)
        rest = max(-(-read * audio.SAMPLE_RATE // rate) - given, 0)  # as many as `to_16khz` gives
        ready = np.pad(ready[:rest], (0, max(rest - len(ready), 0)))
        if len(ready):
            yield ready
        missing = sound.missing(recording.name)
        mix.check(name=recording.name)
    if missing and on_missing:
        on_missing(missing / rate)


def chunks(
    recording: Recording, scanned: Scan, *, frames: int, chunk: int, overlap: int, hop: int
) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """Normalised audio of overlapping chunks, read block by block.

    A frame is of the chunk in whose middle it is. Sizes are in samples; `hop` divides the others.

    Yields:
      Audio, its first frame, and the frames of the recording that are taken of it: first, end.
    """
    samples = scanned.num_samples
    starts = [*range(0, samples - chunk, chunk - overlap)]
    starts.append(max(-(-(samples - chunk) // hop) * hop, 0))  # it ends with the recording
    held, offset, source = np.zeros(0, np.float32), 0, blocks(recording)
    first = 0
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        while offset + len(held) < start + chunk and (block := next(source, None)) is not None:
            held = np.concatenate([held, block])
        held, offset = held[start - offset :], start
        end = frames if following is None else (following + start + chunk) // 2 // hop
        yield (held[:chunk] - scanned.mean) * scanned.factor, start // hop, first, end
        first = end


def _resampler(rate: int):
    if rate == audio.SAMPLE_RATE:
        return lambda block, last: block
    import soxr

    stream = soxr.ResampleStream(rate, audio.SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    return lambda block, last: stream.resample_chunk(np.ascontiguousarray(block), last=last)


def by_length(
    recordings: Iterable[Recording], *, on_bad: Bad, num_workers: int | None = None
) -> list[tuple[Recording, Header]]:
    """Recordings and their headers, longest first.

    What cannot be read at all goes to `on_bad` before anything is computed, in the given order.
    """

    def read(recording: Recording) -> Header | audio.AudioError:
        try:
            return read_header(recording)
        except audio.AudioError as error:
            return error

    recordings, usable = list(recordings), []
    with concurrent.futures.ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        headers = list(pool.map(read, recordings))
    for recording, header in zip(recordings, headers, strict=True):
        if isinstance(header, audio.AudioError):
            on_bad(recording, str(header))
        else:
            usable.append((recording, header))
    return sorted(usable, key=lambda pair: -pair[1].num_samples)


def missing_note(missing: Mapping[str, float]) -> str:
    """The message about recordings, by name, at whose ends so many seconds are missing."""
    names = ", ".join(sorted(missing)[:_NUM_NAMED]) + (", ..." if len(missing) > _NUM_NAMED else "")
    return f"{audio.missing_note(missing.values())}: {names}"


def notes(headers: Sequence[Header]) -> list[str]:
    """Messages about what is resampled and mixed down."""
    rates = sorted({h.sample_rate for h in headers if h.sample_rate != audio.SAMPLE_RATE})
    stereo = sum(h.num_channels > 1 for h in headers)
    texts = []
    if rates:
        count = sum(h.sample_rate in rates for h in headers)
        texts.append(f"{count} recordings are resampled to 16000 Hz, from {rates} Hz")
    if stereo:
        texts.append(f"{stereo} recordings have several channels, which are mixed down")
    return texts
