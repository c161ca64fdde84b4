"""What is read from a source folder: files, tables, ids, speakers. No audio is decoded."""

import os
import unicodedata
from pathlib import Path

import pytest

from dinosr_jax.data.prepare.sources import SourceError, read_source

EMBEDDED = Path(__file__).parents[3] / "data/embedded"


def make_folder(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"audio " + path.encode())
    return root


def utterances(folder: Path) -> dict:
    return {u.id: u for file in read_source(folder).files for u in file.utterances}


def test_nested_folders_and_extensions_in_any_case(tmp_path):
    make_folder(tmp_path, "a.WAV", "x/b.flac", "x/y/c.Mp3", "x/y/d.txt", "e.opus")
    found = utterances(tmp_path)
    assert sorted(found) == ["a", "e", "x/b", "x/y/c"]
    assert found["x/b"].speaker == "x" and found["x/y/c"].speaker == "y"
    assert found["a"].speaker == tmp_path.name
    assert {u.split for u in found.values()} == {"train"}


def test_ids_stay_unique_and_no_file_is_dropped(tmp_path):
    make_folder(tmp_path, "a.wav", "a.flac", "a.wav.ogg", "b.wav")
    assert sorted(utterances(tmp_path)) == ["a.flac", "a.wav", "a.wav.ogg", "b"]


@pytest.mark.parametrize(
    ("path", "speaker"),
    [
        ("train-clean-100/19/198/19-198-0001.flac", "19"),  # LibriSpeech
        ("19/198/x.flac", "19"),
        ("audio/anna/book1/anna_book1_0001.wav", "anna"),  # MLS
        ("en/allison/hello.wav", "allison"),
    ],
)
def test_the_folder_tells_the_speaker(tmp_path, path, speaker):
    (only,) = utterances(make_folder(tmp_path, path)).values()
    assert only.speaker == speaker


def test_librispeech_transcripts(tmp_path):
    make_folder(tmp_path, "19/198/19-198-0001.flac", "19/198/19-198-0002.flac")
    (tmp_path / "19/198/19-198.trans.txt").write_text("19-198-0001 HELLO  WORLD\n19-198-0009 NO\n")
    found = utterances(tmp_path)
    assert found["19/198/19-198-0001"].text == "HELLO  WORLD"
    assert found["19/198/19-198-0002"].text == ""


@pytest.mark.parametrize("mark", ["\t", "  ", " \t ", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_transcripts_with_tabs_marks_and_other_line_ends(tmp_path, mark, encoding):
    make_folder(tmp_path, "a.flac", "b.flac")
    end, mark = ("\r", " ") if mark == "\r" else ("\r\n", mark)
    text = f"a{mark}ONE\u0085TWO\u2028THREE\x0cFOUR{end} b{mark}E\u0301TE\u0301{end}{end}{end}"
    (tmp_path / "a.trans.txt").write_bytes(text.encode(encoding))
    found = utterances(tmp_path)
    assert found["a"].text == "ONE\u0085TWO\u2028THREE\x0cFOUR" and found["b"].text == "\xc9T\xc9"


def test_what_transcripts_fit_is_counted(tmp_path):
    make_folder(tmp_path, "x/a.flac", "x/b.flac", "x/c.flac", "d.flac", "._x/._a.trans.txt")
    (tmp_path / "x/x.trans.txt").write_text("a ONE\nz NO\nd NO\nb\na AGAIN\ny NO\nw NO\n")
    (tmp_path / "empty.trans.txt").write_text("\n")
    source = read_source(tmp_path)
    assert [u.text for file in source.files for u in file.utterances] == ["", "ONE", "", ""]
    assert source.notes == (
        "4 lines of .trans.txt files fit no recording beside them: z (x/x.trans.txt, line 2), "
        "d (x/x.trans.txt, line 3), y (x/x.trans.txt, line 6), ...",
        "1 lines of .trans.txt files are of utterances that have a line; the first counts: "
        "a (x/x.trans.txt, line 5).",
        "1 of 4 utterances have a transcript.",
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_with_accents_apart_are_the_same_names(tmp_path, form):
    apart = {"NFC": "NFD", "NFD": "NFC"}[form]
    written = lambda text: unicodedata.normalize(apart, text)
    make_folder(tmp_path, *(unicodedata.normalize(form, path) for path in ("é/ö.wav", "é/ü.wav")))
    folder = next(tmp_path.iterdir())
    (folder / "x.trans.txt").write_text(written("ö ÉTÉ\n"), encoding="utf-8")
    write_table(tmp_path, "file\ttext", written("é/ü\tÖL"))
    source = read_source(tmp_path)
    assert [u.text for file in source.files for u in file.utterances] == ["ÉTÉ", "ÖL"]
    header = "shard\tfile\tstart_sample\tnum_samples"
    write_table(tmp_path, header, written("é/ü.wav\tö\t0\t9"), name="index.tsv")
    (file,) = read_source(tmp_path).files
    assert (tmp_path / file.path).is_file()


def write_table(folder: Path, *lines: str, name: str = "transcripts.tsv") -> None:
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def test_table_gives_text_speaker_language_and_split(tmp_path):
    make_folder(tmp_path, "a.wav", "x/b.flac", "x/c.flac")
    write_table(
        tmp_path,
        "file\ttext\tspeaker\tlanguage\tsplit",
        'a.wav\tsay "hi\tanna\ten\tdev-clean',
        "x/b\tпривет\t\tru\ttrain",
        "",
    )
    source = read_source(tmp_path)
    found = {u.id: u for file in source.files for u in file.utterances}
    assert found["a"][2:] == ("anna", "en", 'say "hi', "dev-clean")
    assert found["x/b"][2:] == ("x", "ru", "привет", "train")
    assert [path for path, _ in source.left_out] == ["x/c.flac"]  # no split for it, and said so


def test_table_without_splits_leaves_nothing_out(tmp_path):
    make_folder(tmp_path, "a.wav", "b.wav")
    write_table(tmp_path, "file\ttext\tduration", "a\thello\t3")
    source = read_source(tmp_path)
    assert len(source.files) == 2 and not source.left_out
    assert any("duration" in note for note in source.notes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name\ttext", "a\tx"], "line 1: no column file"),
        (["file\ttext\ttext", "a\tx\tx"], "line 1: a column is named twice"),
        (["file\ttext", "a\tx", "gone.wav\ty"], "line 3: file 'gone.wav' is not there"),
        (["file\ttext", "a\tx", "", "a.wav\ty"], "line 4: 'a.wav' is listed again, .*line 2"),
        (["file\ttext", "a"], "line 2: 1 tab-separated cells, expected 2"),
        (["file\tsplit", "a\tall"], "line 2: split 'all'"),
        (["file\tsplit", "a\t"], "line 2: split ''"),
        (["file\tsplit", "a\ttrain[:5%]"], "line 2: split"),
        (["file\ttext", "c\tx"], "line 2: file 'c' is 2 files"),
    ],
)
def test_a_malformed_table_names_the_line(tmp_path, lines, message):
    make_folder(tmp_path, "a.wav", "b.wav", "c.wav", "c.flac")
    write_table(tmp_path, *lines)
    with pytest.raises(SourceError, match=rf"transcripts\.tsv, {message}"):
        read_source(tmp_path)


def test_a_table_that_is_not_utf8_names_the_line(tmp_path):
    make_folder(tmp_path, "a.wav")
    (tmp_path / "transcripts.tsv").write_bytes("file\ttext\na\té".encode("latin-1"))
    with pytest.raises(SourceError, match="line 2: found byte 0xe9"):
        read_source(tmp_path)


def test_columns_of_an_index_are_optional_as_those_of_the_other_table(tmp_path):
    make_folder(tmp_path, "anna/a.ogg")
    write_table(
        tmp_path,
        "shard\tfile\tstart_sample\tnum_samples\ttext\tgender",
        "anna/a.ogg\tx\t0\t9\tHI\tf",
        name="index.tsv",
    )
    source = read_source(tmp_path)
    ((found,),) = (file.utterances for file in source.files)
    assert (found.speaker, found.language, found.text, found.split) == ("anna", "", "HI", "train")
    assert [note for note in source.notes if "gender" in note and "speaker, language" in note]
    assert "1 of 1 utterances have a transcript." in source.notes
    write_table(tmp_path, "shard\tfile\tstart_sample", "anna/a.ogg\tx\t0", name="index.tsv")
    with pytest.raises(SourceError, match=r"index\.tsv, line 1: no column num_samples"):
        read_source(tmp_path)


HEADER = "shard\tfile\tstart_sample\tnum_samples\tspeaker\tlanguage\tsplit\ttext"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("no.ogg\tx\t0\t9\ts\ten\ttrain\tt", "line 3: shard 'no.ogg' is not"),
        ("a.ogg\tone\t5\t9\ts\ten\ttrain\tt", "line 3: 'one' of a.ogg is listed again.* line 2"),
        ("a.ogg\tx\t-5\t9\ts\ten\ttrain\tt", "line 3: start_sample is '-5'"),
        ("a.ogg\tx\t5\t0\ts\ten\ttrain\tt", "line 3: num_samples is '0'"),
        ("a.ogg\tx\t5\t9\ts\ten\ttrain", "line 3: 7 tab-separated"),
    ],
)
def test_a_malformed_index_names_the_line(tmp_path, row, message):
    make_folder(tmp_path, "a.ogg")
    write_table(tmp_path, HEADER, "a.ogg\tone\t0\t9\ts\ten\ttrain\tt", row, name="index.tsv")
    with pytest.raises(SourceError, match=rf"index\.tsv, {message}"):
        read_source(tmp_path)


def test_the_embedded_corpus():
    source = read_source(EMBEDDED)
    found = [u for file in source.files for u in file.utterances]
    assert len(source.files) == 5 and len(found) == 2745 and not source.left_out
    assert {u.split for u in found} == {"train", "validation", "test"}
    assert {u.language for u in found} == {"en", "es", "fr", "it", "ru"}
    first = next(u for u in found if u.id == "asterisk_en/activated")
    assert first.segment[:2] == (3200, 17024) and first.text == "Activated."


def test_folders_without_audio_say_what_they_hold(tmp_path):
    with pytest.raises(SourceError, match="found nothing"):
        read_source(tmp_path / "gone")
    with pytest.raises(SourceError, match="no file at all"):
        read_source(tmp_path)
    make_folder(tmp_path, "a.m4a", "b.m4a", "c.txt")
    with pytest.raises(SourceError, match=r"2 \.m4a, 1 \.txt"):
        read_source(tmp_path)
    with pytest.raises(SourceError, match="found a file"):
        read_source(tmp_path / "c.txt")


def test_fingerprint_follows_files_and_tables(tmp_path):
    make_folder(tmp_path, "a.wav", "x/b.wav")
    before = read_source(tmp_path).fingerprint
    assert read_source(tmp_path).fingerprint == before
    (tmp_path / "notes.md").write_text("not audio")
    assert read_source(tmp_path).fingerprint == before
    seen = {before}
    os.utime(tmp_path / "a.wav", ns=(1, 1))
    seen.add(read_source(tmp_path).fingerprint)
    make_folder(tmp_path, "c.wav")
    seen.add(read_source(tmp_path).fingerprint)
    write_table(tmp_path, "file", "a")
    seen.add(read_source(tmp_path).fingerprint)
    assert len(seen) == 4


def test_links_are_followed_once(tmp_path):
    make_folder(tmp_path, "x/a.wav")
    (tmp_path / "x/loop").symlink_to(tmp_path / "x")
    assert sorted(utterances(tmp_path)) == ["x/a"]
