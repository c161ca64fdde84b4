"""Text files of others: encodings, gzip, and what is no text."""

import gzip
import unicodedata

import pytest

from dinosr_jax.data import text_files
from dinosr_jax.data.text_files import TextError, nfc, on_disk, read_table, read_text

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
        unicodedata.normalize("NFD", TEXT).encode(),
        packed(TEXT, "utf-8-sig"),
    ],
    ids=["plain", "mark", "utf-16", "big-endian", "windows", "old-mac", "joined", "gzip"],
)
def test_text(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert read_text(tmp_path / "x") == TEXT


NO_TEXT = {
    "empty": (b"", "x: the file is empty"),
    "blank": (b"\xef\xbb\xbf\n \n", "x: the file is empty"),
    "no-utf-8": (b"a\nb\xff\n", "x: line 2: found byte 0xff at 3; expected text in UTF-8"),
    "latin-1": (TEXT.encode("latin-1"), "x: line 1: found byte 0xe9 at 0"),
    "zero": (b"a\nb\0c", "x: line 2: found a byte of value 0; expected a text file"),
    "half": (b"\xff\xfea\0b", "x: found byte 0x.. at .; expected text"),
    "second-line": (b"a\rb\xff", "x: line 2: found byte 0xff at 3"),
    "cut": (packed(TEXT * 99)[:-9], "x: gzip that is cut or damaged"),
    "checksum": (packed(TEXT)[:-8] + bytes(8), "x: gzip that is cut or damaged"),
    "no-gzip": (b"\x1f\x8bnothing of the kind", "x: gzip that is cut or damaged"),
}


@pytest.mark.parametrize("case", NO_TEXT)
def test_no_text(tmp_path, case):
    data, expected = NO_TEXT[case]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(TextError, match=expected) as found:
        read_text(tmp_path / "x")
    assert "\n" not in str(found.value)


def test_no_file(tmp_path):
    with pytest.raises(TextError, match="none: No such file"):
        read_text(tmp_path / "none")
    with pytest.raises(TextError, match="Is a directory"):
        read_text(tmp_path)


def test_only_line_ends_end_lines(tmp_path):
    text = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\n"
    (tmp_path / "x").write_text(text)
    assert read_text(tmp_path / "x") == text and len(text.splitlines()) == 9


def test_gzip_is_unpacked_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_UNPACKED_BYTES", 3 * 2**20)
    path = tmp_path / "x"
    path.write_bytes(packed("a" * (3 * 2**20)))
    assert len(read_text(path)) == 3 * 2**20
    path.write_bytes(packed("a" * 2**22))
    assert path.stat().st_size < 2**13
    with pytest.raises(TextError, match=r"x: gzip that holds more than 0\.00\d+ GiB.* unpack it"):
        read_text(path)


def test_an_empty_file_may_be_read(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf\r\n")
    assert read_text(tmp_path / "x", may_be_empty=True) == "\n"


def test_names_of_files_keep_what_is_no_utf8_and_their_letters(tmp_path):
    apart = unicodedata.normalize("NFD", "é").encode()
    (tmp_path / "x").write_bytes(b"\xff" + apart)
    found = read_text(tmp_path / "x", letters="as written", not_utf8="keep")
    assert found.encode("utf-8", "surrogateescape") == b"\xff" + apart


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_file_is_found_by_what_its_name_looks_like(tmp_path, form):
    there = tmp_path / unicodedata.normalize(form, "ö/é.wav")
    there.parent.mkdir()
    there.touch()
    for other in ("NFC", "NFD"):
        assert on_disk(tmp_path / unicodedata.normalize(other, "ö/é.wav")) == there
    assert on_disk(tmp_path / "ö/è.wav") == tmp_path / "ö/è.wav"
    assert on_disk(tmp_path / "none/é.wav") == tmp_path / "none/é.wav"


def test_a_name_that_looks_like_two_is_none_of_them(tmp_path):
    for name in ("\u1e69", "s\u0323\u0307"):  # one letter with two accents
        (tmp_path / name).touch()
    assert on_disk(tmp_path / "\u1e69") == tmp_path / "\u1e69"
    other = tmp_path / "\u1e61\u0323"
    assert on_disk(other) == other and nfc("\u1e61\u0323") == "\u1e69"


def test_tables(tmp_path):
    (tmp_path / "x").write_text('a,b\r\n"1,\r\n1",2\n\n3\n')
    assert read_table(tmp_path / "x") == (
        ["a", "b"],
        [(3, {"a": "1,\n1", "b": "2"}), (5, {"a": "3", "b": None})],
    )
    (tmp_path / "x").write_text('a\tb\n"1\t2\n')
    assert read_table(tmp_path / "x") == (["a", "b"], [(2, {"a": '"1', "b": "2"})])
    (tmp_path / "x").write_text('a,b\n1,2\n"3,4\n' + "5,6\n" * 40_000)
    with pytest.raises(TextError, match=r"x: line \d+: field larger .* closed quotes"):
        read_table(tmp_path / "x")
