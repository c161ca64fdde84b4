"""Text files of others: encodings, gzip, and what is no text."""

import gzip

import pytest

from dinosr_jax.data.text_files import TextError, read_text

TEXT = "é\tAH\nzwei\n"


def packed(text, encoding="utf-8"):
    """Without the time, which gzip writes by default."""
    return gzip.compress(text.encode(encoding), mtime=0)


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        packed(TEXT, "utf-8-sig"),
    ],
    ids=["plain", "mark", "utf-16", "big-endian", "windows", "old-mac", "gzip"],
)
def test_text(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert read_text(tmp_path / "x") == TEXT


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "x: the file is empty"),
        (b"\xef\xbb\xbf\n \n", "x: the file is empty"),
        (b"a\nb\xff\n", "x: line 2: found byte 0xff at 3; expected text in UTF-8"),
        (TEXT.encode("latin-1"), "x: line 1: found byte 0xe9 at 0"),
        (b"a\nb\0c", "x: line 2: found a byte of value 0; expected a text file"),
        (b"\xff\xfea\0b", "x: found byte 0x.. at .; expected text"),
        (packed(TEXT * 99)[:-9], "x: gzip that is cut or damaged"),
        (packed(TEXT)[:-8] + bytes(8), "x: gzip that is cut or damaged"),
        (b"\x1f\x8bnothing of the kind", "x: gzip that is cut or damaged"),
    ],
    ids=["empty", "blank", "no-utf-8", "latin-1", "zero", "half", "cut", "checksum", "no-gzip"],
)
def test_no_text(tmp_path, data, expected):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(TextError, match=expected) as found:
        read_text(tmp_path / "x")
    assert "\n" not in str(found.value)


def test_no_file(tmp_path):
    with pytest.raises(TextError, match="none: No such file"):
        read_text(tmp_path / "none")
    with pytest.raises(TextError, match="Is a directory"):
        read_text(tmp_path)
