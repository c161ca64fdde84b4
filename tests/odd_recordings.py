"""Real recordings whose headers say no length or a wrong one, as recorders and pipes leave them."""

import io
import struct
from pathlib import Path

import numpy as np
import soundfile

_SHARD = Path(__file__).parents[1] / "data/embedded/asterisk_en.ogg"
STREAMINFO = 8  # first byte in a FLAC file


def speech(samples: int = 24_000, *, start: int = 3200) -> np.ndarray:
    """[S] int16 at 16 kHz."""
    return soundfile.read(_SHARD, start=start, frames=samples, dtype="int16")[0]


def encoded(samples: np.ndarray, kind: str, subtype: str | None = None, rate=16_000) -> bytes:
    """The bytes of an audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def patched(content: bytes, position: int, new: bytes) -> bytes:
    """The same with other bytes at a position."""
    return content[:position] + new + content[position + len(new) :]


def flac_claims(content: bytes, samples: int) -> bytes:
    """FLAC with another number of samples, and without a digest of them, as from a pipe."""
    position = STREAMINFO + 13  # 36 bits: the lower half of this byte, and four more
    high = content[position] & 0xF0 | samples >> 32
    content = patched(content, position, bytes([high]) + struct.pack(">I", samples & 0xFFFFFFFF))
    return patched(content, STREAMINFO + 18, bytes(16))


def wav_sizes(content: bytes, *, riff: int, data: int) -> bytes:
    """WAV with other sizes of the file and of the samples."""
    content = patched(content, 4, struct.pack("<I", riff))
    return patched(content, content.index(b"data") + 4, struct.pack("<I", data))


def _killed(samples: np.ndarray, kind: str) -> bytes:
    """What is in a file whose writer has not closed it yet."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 16_000, 1, format=kind) as file:
        file.write(samples)
        return buffer.getvalue()


def mp3_without_length(samples: np.ndarray) -> bytes:
    """MP3 of a variable bit rate, without the frame that says how long it is."""
    content = encoded(samples, "MP3")
    second = content.index(content[:2], 4)
    while content[second + 2] & 0x0C != content[2] & 0x0C:  # of the same sample rate: a frame
        second = content.index(content[:2], second + 1)
    return content[second:]


def unfinished() -> dict[str, tuple[str, bytes]]:
    """Name -> (extension, content) of `speech()` in files whose headers do not say its length."""
    x = speech()
    wav, gsm = encoded(x, "WAV"), encoded(x, "WAV", "GSM610", 8_000)
    caf, rifx = encoded(x, "CAF"), encoded(x, "AIFF")
    found = {
        "flac": (".flac", flac_claims(encoded(x, "FLAC"), 0)),
        "wav 0": (".wav", wav_sizes(wav, riff=0, data=0)),
        "wav 36 0": (".wav", wav_sizes(wav, riff=36, data=0)),
        "wav ffffffff": (".wav", wav_sizes(wav, riff=0xFFFFFFFF, data=0xFFFFFFFF)),
        "wav 7fffffff": (".wav", wav_sizes(wav, riff=0x7FFFFFFF, data=0x7FFFFFFF)),
        "gsm 0": (".wav", wav_sizes(gsm, riff=0, data=0)),
        "gsm ffffffff": (".wav", wav_sizes(gsm, riff=0xFFFFFFFF, data=0xFFFFFFFF)),
        "caf -1": (".caf", patched(caf, caf.index(b"data") + 4, b"\xff" * 8)),
        "au 0": (".au", patched(encoded(x, "AU"), 8, bytes(4))),
        "aiff ffffffff": (".aiff", patched(rifx, rifx.index(b"SSND") + 4, b"\xff" * 4)),
        "mp3": (".mp3", mp3_without_length(x)),
    }
    for kind in ("WAV", "AIFF", "CAF", "AU", "RF64", "W64"):
        found[f"killed {kind}"] = (f".{kind.lower()}", _killed(x, kind))
    return found
