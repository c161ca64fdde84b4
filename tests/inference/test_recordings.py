"""Lists of recordings as they are written by hand and by other tools; no audio is decoded."""

import codecs
import unicodedata

import pytest

from dinosr_jax.data.audio import AudioError
from dinosr_jax.inference.recordings import open_inputs


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "audio").mkdir()
    for name in ("a.flac", "b c.wav", "é.flac"):
        (tmp_path / "audio" / name).write_bytes(b"\0")
    return tmp_path


READ = {
    "fairseq": "audio\na.flac\t123\nb c.wav\t9\n",
    "no counts": "audio\na.flac\nb c.wav\n",
    "an empty second line": "audio\n\na.flac\t123\n\nb c.wav\t9\n\n\n",
    "CRLF": "audio\r\na.flac\t123\r\nb c.wav\t9\r\n",
    "CR": "audio\ra.flac\rb c.wav",
}


@pytest.mark.parametrize("name", ["train.tsv", "list.txt", "list"])
@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_are_read(folder, case, name, encoding):
    (folder / name).write_bytes(READ[case].encode(encoding))
    found = open_inputs(folder / name)
    assert [recording.id for recording in found] == ["a", "b c"]
    assert all(recording.read().is_file() for recording in found)


REFUSED = {
    "two spaces": ("audio\na.flac  123\n", "line 2: no file .*audio/a.flac  123"),
    "a third column": ("audio\na.flac\t1\nb c.wav\t9\tanna\n", "line 3: found 'b c.wav.t9.tanna'"),
    "a fraction": ("audio\na.flac\t123.0\n", "line 2: found 'a.flac.t123.0'"),
    "a header": ("id\taudio\tn_frames\nx\ta.flac\t9\n", "line 1: found 'id.taudio.tn_frames'"),
    "a header below the root": ("audio\npath\tframes\n", "line 2: found 'path.tframes'"),
    "no root": ("a.flac\t123\nb c.wav\t9\n", "line 1: found 'a.flac.t123'"),
    "no root, no counts": ("a.flac\nb c.wav\n", "line 2: no file .*/a.flac/b c.wav"),
    "only a root": ("audio\n\n", "found no line below line 1"),
    "NeMo": ('{"audio_filepath": "a.flac", "duration": 1.0}\n' * 2, "line 1: found '{"),
    "JSON": ("[\n1]\n", "line 1: found '\\["),
    "nothing": ("", "the file is empty"),
    "above the root": ("audio\n../train.tsv\n", "line 2: '../train.tsv' leaves the root"),
}


@pytest.mark.parametrize("name", ["train.tsv", "list"])
@pytest.mark.parametrize("case", REFUSED)
def test_other_lists_name_the_line_and_what_was_expected(folder, case, name):
    text, message = REFUSED[case]
    (folder / name).write_text(text)
    with pytest.raises(AudioError, match=f"{name}.*{message}.*path.* below it") as found:
        [recording.load() for recording in open_inputs(folder / name)]
    assert "libsndfile" not in str(found.value)


def test_files_whose_names_differ_by_the_form_of_their_letters(folder):
    apart = unicodedata.normalize("NFD", "é.flac")
    (folder / "train.tsv").write_text(f"audio\n{apart}\n", encoding="utf-8")
    (recording,) = open_inputs(folder / "train.tsv")
    assert recording.read() == folder / "audio" / "é.flac"


def test_names_that_are_no_utf8(folder):
    name = b"\xff\xe9.flac"
    (folder / "audio" / name.decode("utf-8", "surrogateescape")).write_bytes(b"\0")
    (folder / "train.tsv").write_bytes(codecs.BOM_UTF8 + b"audio\n" + name + b"\t9\n")
    (recording,) = open_inputs(folder / "train.tsv")
    assert recording.read().is_file()


def test_recordings_of_any_name_are_no_lists(folder):
    (folder / "sound").write_bytes(b"fLaC\0\0\0\x22")
    (folder / "note.wav").write_text("audio\na.flac\n")
    ids = [recording.id for recording in open_inputs([folder / "sound", folder / "note.wav"])]
    assert ids == ["sound", "note"]
