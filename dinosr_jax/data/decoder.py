"""One recording through libsndfile, a block at a time.

A file whose header was never finished, by a recorder that died or a program that writes to a pipe,
is read to its end. soundfile is imported where a file is opened.

Shapes: S samples, C channels.
"""

import contextlib
import math
import os
import re
import struct
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.errors import UserError

Source = bytes | str | os.PathLike

_RATES = range(1_000, 1_000_001)  # Hz; beyond, resampling would need absurd memory
# Recorders may count their own header, and encoders their last block, twice: 44 bytes, 4096 bytes
# of 44.1 kHz stereo (23 ms), an MP3 frame (36 ms at 16 kHz). It is less than a phone.
_MOST_MISSING_SECONDS = 0.05
_MOST_SAMPLES = 2**48  # more is no length: libsndfile's mark of one that is not known
_OPEN_ENDED_BYTES = 0x7FF0_0000  # sizes near the largest integer are those of open headers
_SIZES = re.compile(
    r"^\s*(?:RIFF|RIFX|Riff size|riff|FORM|data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.M
)
_PIPE_SAMPLES = 256  # read at a time: of one that fails, all are lost
_OGG_PAGE_HEADER_BYTES = 27
_OGG_END_OF_STREAM = 0x04
_END_BYTES = 2**17  # an Ogg page is at most half of it


class AudioError(UserError):
    """One recording cannot be used; the message names it, says why, and what to do."""


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Raises AudioError for any error of the recording `name`, but of a missing library."""
    try:
        yield
    except (AudioError, ImportError):
        raise
    except OSError as error:
        raise AudioError(
            f"{name}: cannot be read ({error.strerror or error}). Check the file and its "
            "permissions."
        ) from None
    except MemoryError as error:
        raise AudioError(
            f"{name}: does not fit in memory ({error}). Cut it into shorter files."
        ) from None
    except Exception as error:
        text = str(error).rsplit(": ", 1)[-1].strip().rstrip(".")  # without "Error opening ...:"
        if type(error).__name__ not in ("LibsndfileError", "SoundFileRuntimeError"):
            text = f"{type(error).__name__}: {text}"
        raise AudioError(
            f"{name}: cannot be decoded ({text}): the file is truncated, corrupt or not audio. "
            "Copy it again, or convert it to FLAC."
        ) from error


class Sound:
    """An open recording: its rate in Hz, its channels, and its blocks, once.

    `num_samples` is the length in its header, or None; `has_true_header` is False where other
    programs may not read the whole file.
    """

    def __init__(self, file: Any, *, num_bytes: int, ends: bytes, finished: bool, pipe: int | None):
        file.seekable = lambda: False  # soundfile seeks after every block: behind the end it fails
        self._file, self._pipe, self._read = file, pipe, 0
        self._num_bytes, self._ends = num_bytes, ends
        self.sample_rate, self.num_channels = file.samplerate, file.channels
        self.is_pcm16 = file.format in ("FLAC", "WAV") and file.subtype == "PCM_16"
        self.num_samples = file.frames if file.frames < _MOST_SAMPLES else None
        sizes = [int(size) for size, _ in _SIZES.findall(file.extra_info)]
        is_open = self.num_samples is None or any(
            not size or size >= _OPEN_ENDED_BYTES for size in sizes
        )
        self.has_true_header = not (finished or is_open)

    def blocks(self, num_samples: int, *, dtype: str) -> Iterator[np.ndarray]:
        """Yields [S] or, of several channels, [S, C]; the last block is shorter, maybe empty."""
        num_samples = max(min(num_samples, 2**22 // self.num_channels), 1)
        block = None
        while block is None or len(block) == num_samples:
            read = self._file.read if self._pipe is None else self._read_pipe
            block = read(num_samples, dtype=dtype)
            self._read += len(block)
            yield block

    def _read_pipe(self, num_samples: int, *, dtype: str) -> np.ndarray:
        """As the file's `read`; a frame that is cut off at the end of the pipe is no error."""
        shape = (0, self.num_channels) if self.num_channels > 1 else 0
        parts, left = [np.zeros(shape, dtype)], num_samples
        while left:
            try:
                part = self._file.read(min(left, _PIPE_SAMPLES), dtype=dtype)
            except RuntimeError:
                if os.read(self._pipe, 1):
                    raise
                break
            parts.append(part)
            left -= len(part)
            if len(part) < _PIPE_SAMPLES:
                break
        return np.concatenate(parts)

    def missing(self, name: str) -> int:
        """How many samples are missing at the end, by the header; after the last block.

        libsndfile reads a truncated wav, ogg or mp3 without an error.

        Raises:
          AudioError: none are there, or too many are missing: the file is truncated.
        """
        if not self._read:
            raise AudioError(
                f"{name}: its header says that the file, of {self._num_bytes:,} bytes, holds no "
                "samples. If it should, its recorder did not finish the header: repair that with "
                "ffmpeg or sox, or record it again."
            )
        missing = max((self.num_samples or 0) - self._read, 0)
        for sizes in _SIZES.findall(self._file.extra_info):
            size, there = map(int, sizes)  # declared, actual
            if there + 1 < size < _OPEN_ENDED_BYTES:  # 1: a missing padding byte
                missing = max(missing, math.ceil((size - there) / max(there, 1) * self._read))
        what = _unfinished_ogg(self._ends)
        if missing > _MOST_MISSING_SECONDS * self.sample_rate:
            what = f"{self._read} of {self._read + missing} samples"
        if what:
            raise AudioError(f"{name}: the file is truncated ({what}). Copy it again.")
        return missing


@contextlib.contextmanager
def opened(source: Source, *, name: str) -> Iterator[Sound]:
    """Opens a recording: the bytes of an audio file, or its path.

    Raises:
      AudioError: the file is empty, cannot be read, or is no audio; or instead of any error while
        it is open.
    """
    with explained(name), contextlib.ExitStack() as stack:
        fd = stack.enter_context(_descriptor(source))
        if not os.fstat(fd).st_size:
            raise AudioError(f"{name}: the file is empty (0 bytes). Copy it again or delete it.")
        patch = _missing_size(fd)
        if patch:
            content = b"".join(_parts(fd))
            start, end = patch.position, patch.position + len(patch.size)
            content = content[:start] + patch.size + content[end:]
            fd = stack.enter_context(_descriptor(content))
        import soundfile

        file, pipe = stack.enter_context(soundfile.SoundFile(fd, closefd=False)), None
        if file.format == "MP3" and not _says_length(fd):
            pipe = stack.enter_context(_piped(fd))  # else libsndfile would stop at an estimate
            file = stack.enter_context(soundfile.SoundFile(pipe, closefd=False))
        if file.samplerate not in _RATES:
            raise AudioError(
                f"{name}: its header says {file.samplerate} Hz, expected {_RATES[0]:,} to "
                f"{_RATES[-1]:,}. Correct the header, or convert it to FLAC."
            )
        about = {"num_bytes": os.fstat(fd).st_size, "ends": _ends(fd)}
        yield Sound(file, finished=patch is not None, pipe=pipe, **about)


@contextlib.contextmanager
def _descriptor(source: Source) -> Iterator[int]:
    """A descriptor of a file; bytes become one in memory: a BytesIO would take Python's lock."""
    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            yield file.fileno()
        return
    memory = hasattr(os, "memfd_create")
    with open(os.memfd_create("audio"), "w+b") if memory else tempfile.TemporaryFile() as file:
        file.write(source)
        file.seek(0)
        yield file.fileno()


def _parts(fd: int) -> Iterator[bytes]:
    """The bytes of a file, a part at a time."""
    position = 0
    while part := os.pread(fd, 2**20, position):
        yield part
        position += len(part)


@contextlib.contextmanager
def _piped(fd: int) -> Iterator[int]:
    """A pipe that gives the bytes of a file."""
    out, into = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), open(into, "wb", buffering=0) as pipe:
            for part in _parts(fd):
                while part:
                    part = part[pipe.write(part) :]

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield out
    finally:
        os.close(out)
        thread.join()


def _says_length(fd: int) -> bool:
    """Whether the first frame of an MP3 file, behind its ID3 tags, says how many follow."""
    start = 0
    while (tag := os.pread(fd, 10, start))[:3] == b"ID3" and len(tag) == 10:
        size = 0
        for byte in tag[6:]:
            size = size << 7 | byte & 0x7F
        start += 10 + size
    head = os.pread(fd, 2048, start)
    return b"Xing" in head or b"Info" in head


class _Container(NamedTuple):
    """Chunks of a file: first byte of the first, form of sizes, name of the one with samples.

    `empty` is the size of that chunk without samples; `padded`: chunks end at even bytes.
    """

    first: int
    size: struct.Struct
    samples: bytes = b"data"
    empty: int = 0
    padded: bool = True


_CONTAINERS = {
    b"RIFF": _Container(12, struct.Struct("<I")),
    b"RIFX": _Container(12, struct.Struct(">I")),
    b"RF64": _Container(12, struct.Struct("<I")),
    b"FORM": _Container(12, struct.Struct(">I"), b"SSND", empty=8),
    b"caff": _Container(8, struct.Struct(">q"), empty=4, padded=False),
}
_AU = struct.Struct(">4sII")  # magic, first byte of the samples, their bytes
_SIZE64 = struct.Struct("<Q")


class _Patch(NamedTuple):
    """Bytes that belong at a position of a header."""

    position: int
    size: bytes


def _missing_size(fd: int) -> _Patch | None:
    """The size that a header leaves out, where samples follow it; None where it is complete."""
    num_bytes, start = os.fstat(fd).st_size, os.pread(fd, _AU.size, 0)
    if start[:4] == b".snd" and len(start) == _AU.size:
        _, first, size = _AU.unpack(start)
        return None if size or num_bytes <= first else _Patch(8, b"\xff" * 4)
    container, sizes64 = _CONTAINERS.get(start[:4]), None
    chunks = _chunks(fd, container, container.first) if container else ()
    for id_, begin, size in chunks:  # noqa: B007 the last one is used
        if id_ == b"ds64":
            sizes64 = begin
        if id_ == container.samples:
            break
    else:
        return None
    position, form = begin - container.size.size, container.size
    if start[:4] == b"RF64" and sizes64:
        position, form = sizes64 + 8, _SIZE64  # behind the size of the file
        (size,) = form.unpack(os.pread(fd, form.size, position))
    rest = num_bytes - begin
    if size > container.empty or rest <= container.empty:
        return None
    behind = begin + max(size, 0)  # chunks to the end where there really are no samples
    ends = [behind, *(first + more for _, first, more in _chunks(fd, container, behind))]
    if abs(num_bytes - ends[-1]) <= 1:  # 1: a padding byte
        return None
    return _Patch(position, form.pack(min(rest, 2**32 - 1) if form.size == 4 else rest))


def _chunks(fd: int, container: _Container, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (id, first byte, size) of chunks, to the end of the file or to what is none."""
    length = 4 + container.size.size
    while len(head := os.pread(fd, length, position)) == length:
        (size,) = container.size.unpack(head[4:])
        if not all(0x20 <= byte < 0x7F for byte in head[:4]):
            return
        yield head[:4], position + length, size
        position += length + max(size, 0) + (size % 2 if container.padded else 0)


def _ends(fd: int) -> bytes:
    """First bytes of a file, and of an Ogg file its end."""
    start = os.pread(fd, 4, 0)
    if start != b"OggS":
        return start
    return start + os.pread(fd, _END_BYTES, max(os.fstat(fd).st_size - _END_BYTES, len(start)))


def _unfinished_ogg(ends: bytes) -> str:
    """What is wrong with the last page of an Ogg file, '' of any other."""
    if not ends.startswith(b"OggS"):
        return ""
    page = ends[ends.rfind(b"OggS") :]
    if len(page) < _OGG_PAGE_HEADER_BYTES or not page[5] & _OGG_END_OF_STREAM:
        return "its last Ogg page does not end the stream"
    segments_end = _OGG_PAGE_HEADER_BYTES + page[26]
    if len(page) < segments_end + sum(page[_OGG_PAGE_HEADER_BYTES:segments_end]):
        return "its last Ogg page is incomplete"
    return ""
