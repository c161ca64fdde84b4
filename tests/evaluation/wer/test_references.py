import json
import unicodedata

import pytest

from dinosr_jax.data.text_files import TextError
from dinosr_jax.evaluation.wer.rates import rates
from dinosr_jax.evaluation.wer.references import Pair, Transcript, join, match, read_transcripts


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"file": "a/1", "text": "ONE"}\n{"file": "a/2", "text": "TWO, three"}\n'),
        ("a.tsv", "file\tspeaker\ttext\na/1\t\tONE\na/2\t\tTWO, three\n"),
        ("a.csv", 'id,text\r\na/1,ONE\r\na/2,"TWO, three"\r\n'),
        ("text", "a/1 ONE\na/2  TWO, three\n"),
        ("b.csv", 'id;text\n\n"a/1";ONE\na/2;"TWO, three"\n'),
        (
            "c.jsonl",
            '{"audio_filepath": "a/1", "text": "ONE"}\n{"id": "a/2", "text": "TWO, three"}',
        ),
    ],
)
def test_every_form_is_read(tmp_path, name, text):
    found = read_transcripts(write(tmp_path / name, text))
    assert {id_: row.text for id_, row in found.items()} == {"a/1": "ONE", "a/2": "TWO, three"}


def test_fields_with_line_ends_quotes_and_numbers(tmp_path):
    found = read_transcripts(write(tmp_path / "a.csv", 'id,text\n7,"one\ntwo ""x"""\n8,\n'))
    assert found == {"7": Transcript("7", 'one\ntwo "x"'), "8": Transcript("8", "")}
    found = read_transcripts(write(tmp_path / "a.tsv", 'path\tsentence\na.mp3\t"Yes\n'))
    assert found["a.mp3"].text == '"Yes'
    found = read_transcripts(write(tmp_path / "a.jsonl", '{"id": 7, "text": "x", "speaker": 3}'))
    assert found == {"7": Transcript("7", "x", "3")}


def test_a_librispeech_tree(tmp_path):
    write(tmp_path / "84/121/84-121.trans.txt", "84-121-0000 GO ON\n84-121-0001 STOP\n")
    write(tmp_path / "85/7/85-7.trans.txt", "85-7-0000 YES\n")
    found = read_transcripts(tmp_path)
    assert found["84-121-0001"] == Transcript("84-121-0001", "STOP", "84")
    assert found["85-7-0000"].speaker == "85" and len(found) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file": "a", "text": "x"}\n{broken\n', "line 2: no JSON"),
        ('{"file": "a"}\n', "line 1: expected an utterance"),
        ('{"file": "a", "text": "x"}\n{"file": "a", "text": "y"}\n', "'a' is there twice"),
        ('{"file": "a", "text": "x"}\n\n{"file": "a", "text": ""}\n', "line 3: .* in .*: line 1;"),
        ('{"file": "a", "text": "x"}\n[1]\n', "line 2: found"),
        ('{"file": "", "text": "x"}\n', "line 1: expected an utterance"),
        ('{"file": "a", "text": "x"}\n{"file": "b", "te', "line 2: no JSON"),
        ('file,text\na,"two\nlines"\nb,"cut\n', "line 4: "),
        ('file,text\na,"two\nlines"\n\nb,x,y\n', "line 5: found 3 fields"),
        ("file\ttext\na\tx\ty\n", "line 2: found 3 fields"),
        ("", "empty"),
    ],
)
def test_what_is_malformed_is_named(tmp_path, text, words):
    with pytest.raises(TextError, match=words):
        read_transcripts(write(tmp_path / "x", text))


def test_a_folder_without_transcripts(tmp_path):
    with pytest.raises(TextError, match="--split"):
        read_transcripts(tmp_path)


def rows(**texts):
    named = {name.replace("__", "/"): text for name, text in texts.items()}
    return {name: Transcript(name, text) for name, text in named.items()}


def test_utterances_are_matched_by_id_else_by_name(tmp_path):
    known = rows(a__one="1", b__two="2", three="3")
    pairs, extra = join(known, rows(one="x", b__two="y", c__other="z"), path=tmp_path)
    assert pairs == [
        Pair(known["a/one"], "x"), Pair(known["b/two"], "y"), Pair(known["three"], None),
    ]  # fmt: skip
    assert extra == ["c/other"]
    with_extension = {"a/one.flac": Transcript("a/one.flac", "1")}
    assert match(with_extension, ["a/one"], path=tmp_path) == {"a/one.flac": "a/one"}


def test_a_name_that_fits_two_is_refused(tmp_path):
    known = rows(a__one="1", b__one="2")
    with pytest.raises(TextError, match="ambiguous"):
        join(known, rows(one="x"), path=tmp_path)


def test_names_and_words_with_accents_joined_and_apart_are_the_same(tmp_path):
    apart = unicodedata.normalize("NFD", "é ÉTÉ\x85ÉTÉ")
    tree, hypothesis = tmp_path / "x.trans.txt", tmp_path / "hyp.jsonl"
    tree.write_text(apart + "\r\n\r\n", encoding="utf-8")
    hypothesis.write_text(json.dumps({"file": apart[:2], "text": apart[3:]}))
    known = read_transcripts(tree)
    assert known == read_transcripts(hypothesis) == {"é": Transcript("é", "ÉTÉ\x85ÉTÉ")}
    (tmp_path / "._x.trans.txt").write_bytes(b"\0\5\x16\7")  # what macOS leaves on other disks
    assert read_transcripts(tmp_path) == known
    given = {apart[:2]: Transcript(apart[:2], apart[3:])}  # of a dataset
    (pair,), extra = join(known, given, path=tmp_path)
    assert not extra and rates([pair], normalise="none").errors.wer == 0
