r"""Text files of others: plain or gzip, UTF-8 or UTF-16 with its mark, or clearly refused.

Lines end with \n, \r\n or \r; other characters at which `str.splitlines` cuts (U+0085, U+2028, form
feeds) are text. A letter with an accent is one character (NFC in Unicode): words are equal where
they look equal. Names of files on disk may be otherwise (macOS), which `on_disk` allows for.
"""

import codecs
import csv
import gzip
import io
import os
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dinosr_jax.errors import UserError

MAX_UNPACKED_BYTES = 2 * 2**30  # of a gzip file: a small one may hold terabytes
_CHUNK_BYTES = 2**20


class TextError(UserError):
    """A text file cannot be used; the message has the place, what is there, and what it lacks."""


def read_text(
    path: str | Path,
    *,
    letters: Literal["NFC", "as written"] = "NFC",
    not_utf8: Literal["raise", "keep"] = "raise",
    may_be_empty: bool = False,
) -> str:
    r"""Reads a text file whole.

    Args:
      path: A file; gzip is recognised by its content, UTF-16 by its byte order mark.
      letters: 'as written' leaves letters and accents apart where they are.
      not_utf8: 'keep' is for names of files, which may have bytes that are no UTF-8.
      may_be_empty: Whether a file without any text is '' in place of an error.

    Returns:
      The text, with \n line ends and without a byte order mark.

    Raises:
      TextError: It cannot be read, is cut, empty, or no text, or holds too much when unpacked.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = b"".join(_unpacked(path))
    except OSError as error:
        raise TextError(f"{path}: {error.strerror or error}") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    errors = "strict" if not_utf8 == "raise" or wide else "surrogateescape"
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        byte = data[error.start : error.start + 1].hex()
        before = data[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        line = "" if wide else f"line {before.count(10) + 1}: "
        raise TextError(
            f"{path}: {line}found byte 0x{byte} at {error.start}; expected text in UTF-8, or in "
            "UTF-16 with a byte order mark"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TextError(f"{path}: line {line}: found a byte of value 0; expected a text file")
    if not may_be_empty and not text.strip():
        raise TextError(f"{path}: the file is empty")
    return nfc(text) if letters == "NFC" else text


def read_table(path: str | Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Reads a table with a header: with tabs, where quotes are literal, or with commas.

    Returns:
      Its columns; and line number and fields of every row, None where one is missing.

    Raises:
      TextError: As `read_text`; or a quotation mark is not closed.
    """
    text = read_text(path)
    with_tabs = "\t" in text.split("\n", 1)[0]
    how = {"delimiter": "\t" if with_tabs else ","}
    how["quoting"] = csv.QUOTE_NONE if with_tabs else csv.QUOTE_MINIMAL
    rows = csv.DictReader(io.StringIO(text), strict=True, **how)
    try:
        numbered = [(rows.line_num, row) for row in rows]
        return list(rows.fieldnames or ()), numbered
    except csv.Error as error:
        line = rows.line_num + 1
        raise TextError(f"{path}: line {line}: {error}; expected closed quotes") from None


def _unpacked(path: str | Path) -> Iterator[bytes]:
    """What a gzip file holds, piece by piece; TextError where it is damaged or holds too much."""
    total = 0
    try:
        with gzip.open(path, "rb") as file:
            while piece := file.read(_CHUNK_BYTES):
                total += len(piece)
                if total > MAX_UNPACKED_BYTES:
                    raise TextError(
                        f"{path}: gzip that holds more than {MAX_UNPACKED_BYTES / 2**30:g} GiB; "
                        "expected less. If that is right, unpack it first (gunzip)"
                    )
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TextError(f"{path}: gzip that is cut or damaged ({error}); copy it again") from None


def nfc(text: str) -> str:
    """The text with every letter and its accents as one character, where there is one."""
    return unicodedata.normalize("NFC", text)


def on_disk(path: Path) -> Path:
    """The path as it is on disk, where letters and accents may be joined or apart.

    Returns:
      As it was given where there is no such file, or where several look so.
    """
    if os.path.lexists(path) or str(path).isascii():
        return path
    parent = on_disk(path.parent)
    try:
        alike = [name for name in os.listdir(parent) if nfc(name) == nfc(path.name)]
    except OSError:
        return path
    return parent / alike[0] if len(alike) == 1 else path
