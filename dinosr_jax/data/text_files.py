"""Text files of others: plain or gzip, UTF-8 or UTF-16 with its mark, or clearly refused."""

import codecs
import gzip
import zlib
from pathlib import Path


class TextError(ValueError):
    """A text file cannot be used; the message says where, what was found and what was expected."""


def read_text(path: str | Path) -> str:
    r"""Reads a text file whole.

    Args:
      path: A file; gzip is recognised by its content, UTF-16 by its byte order mark.

    Returns:
      The text, with \n line ends.

    Raises:
      TextError: It cannot be read, is cut, empty, or no text.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TextError(f"{path}: gzip that is cut or damaged ({error}); copy it again") from None
    except OSError as error:
        raise TextError(f"{path}: {error.strerror or error}") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        found = data[error.start : error.start + 1].hex()
        line = "" if wide else f"line {data.count(10, 0, error.start) + 1}: "
        raise TextError(
            f"{path}: {line}found byte 0x{found} at {error.start}; expected text in UTF-8, or in "
            "UTF-16 with a byte order mark"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TextError(f"{path}: line {line}: found a byte of value 0; expected a text file")
    if not text.strip():
        raise TextError(f"{path}: the file is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")
