"""What is kept of transcripts that are under way: full disks, two at a time, damage."""

import json
import resource

import pytest

from dinosr_jax.inference.outputs import OutputError
from dinosr_jax.inference.recognition.decoding import Hypothesis, Word
from dinosr_jax.inference.recognition.transcript_file import TranscriptFile

ABOUT = {"fingerprint": "f", "decoder": "greedy"}


def said(text):
    return Hypothesis(text, tuple(Word(w, 0.0, 1.0) for w in text.split()), -1.25)


def opened(path, **changes):
    return TranscriptFile(path / "h.jsonl", key="file", about=ABOUT | changes)


def test_what_is_not_committed_is_forgotten(tmp_path):
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as file:
        file.add("b", said("B"), commit=False)
        file.add("a", said("A A"), commit=True)
        file.add("c", said("C"), commit=False)
        raise KeyboardInterrupt
    partial = tmp_path / ".h.jsonl.partial"
    for rest in (b'{"file": "d"', b'{"file": "d", "text": ""}\n', b"\xff\n", b"\0" * 9):
        partial.write_bytes(partial.read_bytes() + rest)
        with opened(tmp_path) as file:
            assert set(file.lines) == {"a", "b"}
    with opened(tmp_path) as file:
        file.add("\u2028d\x85", said("É"), commit=True)
        file.finish(["a", "b", "\u2028d\x85"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.about.json", "h.jsonl"]
    found = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().split("\n")[:-1]]
    assert [line["file"] for line in found] == ["a", "b", "\u2028d\x85"]
    assert found[0] == {
        "file": "a", "text": "A A", "words": [{"word": "A", "start": 0.0, "end": 1.0}] * 2,
        "score": -1.25,
    }  # fmt: skip
    with opened(tmp_path) as file:
        assert set(file.lines) == {"a", "b", "\u2028d\x85"}


def test_other_settings_are_refused_while_there_are_lines(tmp_path):
    with opened(tmp_path) as file:
        file.add("a", said("A"), commit=True)
    with pytest.raises(OutputError, match="decoder: there 'greedy', asked for 'beam'"):
        with opened(tmp_path, decoder="beam"):
            pass
    (tmp_path / ".h.jsonl.partial").unlink()
    with opened(tmp_path, decoder="beam") as file:
        assert file.lines == {}
    assert json.loads((tmp_path / "h.about.json").read_text())["decoder"] == "beam"


def test_lines_of_unknown_making_are_not_taken(tmp_path):
    (tmp_path / "h.jsonl").write_text('{"file": "a", "units": [1]}\n')
    with opened(tmp_path) as file:
        assert file.lines == {}


def test_two_at_a_time_are_refused(tmp_path):
    with opened(tmp_path):
        with pytest.raises(OutputError, match="another process is writing it"):
            with opened(tmp_path):
                pass
    with opened(tmp_path):
        pass


def test_a_full_disk_costs_only_what_did_not_fit(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OutputError, match="the disk is full.*run the same command again"):
        with opened(tmp_path) as file:
            file.add("a", said("A"), commit=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
            try:
                file.add("b", said("B " * 2000), commit=True)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with opened(tmp_path) as file:
        assert "a" in file.lines
        file.add("b", said("B"), commit=True)
        file.finish(["a", "b"])
    assert (tmp_path / "h.jsonl").read_text().count("\n") == 2
