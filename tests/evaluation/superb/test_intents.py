"""Fluent Speech Commands: the tables, and rows that cannot be used; answers as classes."""

import unicodedata

import numpy as np
import pytest

from dinosr_jax.data.text_files import TextError
from dinosr_jax.evaluation.probes.examples import Example, Examples
from dinosr_jax.evaluation.probes.head_training import FeatureBatch, HeadSettings
from dinosr_jax.evaluation.superb import utterance_tasks
from dinosr_jax.evaluation.superb.intents import read_intents
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.inference.recordings import Recording
from tests.spoken_corpora import write_intents


def test_the_published_tables(tmp_path):
    write_intents(tmp_path, each=(2, 1, 1))
    found = read_intents(tmp_path)
    assert [len(part) for part in found[:3]] == [8, 4, 4] and found.left_out == ()
    assert found.train[2].label == ("activate", "music", "none")
    assert found.train[2].recording.source == tmp_path / found.train[2].recording.id


def test_rows_that_cannot_be_used(tmp_path):
    write_intents(tmp_path, each=(2, 1, 1))
    tables = {name: tmp_path / "data" / f"{name}_data.csv" for name in ("train", "test")}
    tested = tables["test"].read_text().splitlines()[1]
    with open(tables["train"], "a") as file:
        file.write(f"{tested}\n8,wavs/gone.wav,x,text,activate,lights,none\n")
        file.write("9,../x.wav,x,text,activate,lights,none\n10,wavs/y.wav,x,text,activate,,none\n")
        file.write("11,wavs/z.wav\n")
    (tmp_path / tested.split(",")[1]).rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / tested.split(",")[1])
    found = read_intents(tmp_path)
    assert [len(part) for part in found[:3]] == [8, 4, 4]
    reasons = " | ".join(f"{name}: {reason}" for name, reason in found.left_out)
    for expected in (
        "named again, first in 'test'",  # nothing is learnt that is tested
        "gone.wav: no such file",
        "line 12: '../x.wav' leaves the folder",
        "line 13: no path, or a slot without a value",
        "line 14: no path, or a slot without a value",
    ):
        assert expected in reasons
    assert len(found.left_out) == 5


def test_other_tables(tmp_path):
    with pytest.raises(TextError, match="train_data.csv: No such file"):
        read_intents(tmp_path)
    write_intents(tmp_path, each=(1, 1, 1))
    (tmp_path / "data/valid_data.csv").write_text("path,action,object\nx,a,b\n")
    with pytest.raises(TextError, match=r"valid_data.csv: found the columns .*'location'"):
        read_intents(tmp_path)


def test_a_part_without_recordings(tmp_path):
    write_intents(tmp_path, each=(1, 1, 0))
    found = read_intents(tmp_path)
    with pytest.raises(LabelError, match="'test', expected some in train, valid, test"):
        found.only([example.recording for example in found.everyone()])


def example(text):
    name, *label = text.split()
    return Example(Recording(name, name, np.ones(1)), tuple(label))


def test_answers_are_classes():
    train = [example(labels) for labels in ("a on x p", "b off y p", "c on z p")]
    parts = Examples(tuple(train), (example("d off x p"),), (example("e on new p"),), (), "")
    task, labels = utterance_tasks.classify(parts, settings=HeadSettings(), balanced=False)
    assert task.head.num_outputs == 2 + 3 + 1 and task.head.pooled
    assert {id_: label.tolist() for id_, label in labels.items()} == {
        "a": [0, 0, 0], "b": [1, 1, 0], "c": [0, 2, 0], "d": [1, 0, 0], "e": [0, -1, 0],
    }  # fmt: skip
    logits = np.array([[0.5, 2.0, 1.0, 3.0, -1.0, 9.0]])
    assert task.read(logits[0]).tolist() == [1, 1, 0]
    batch = FeatureBatch(
        (), None, np.array([4, 0]), np.array([[1, 2, 0], [0, 0, 0]]), np.array([3, 0])
    )
    expected = -np.log(np.exp(2) / np.exp([0.5, 2]).sum())
    expected -= np.log(np.exp(-1) / np.exp([1, 3, -1.0]).sum())
    found = utterance_tasks.loss(np.concatenate([logits, 5 * logits]), batch, sizes=[2, 3, 1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_accuracy_is_of_all_answers():
    pairs = [([0, 1], [0, 1]), ([0, 1], [0, 2]), ([0, 1], [0, 1]), ([1, 1], [1, 0])]
    references, found = zip(*(map(np.array, pair) for pair in pairs), strict=True)
    assert utterance_tasks.accuracy(references, found) == {
        "accuracy": 0.5,
        "balanced_accuracy": pytest.approx((2 / 3 + 0) / 2),
    }


def test_files_whose_names_have_their_accents_apart(tmp_path):
    write_intents(tmp_path, each=(2, 1, 1))
    with open(tmp_path / "data/train_data.csv", "a", encoding="utf-8") as file:
        file.write("8,wavs/é.wav,x,text,activate,lights,none\r\n\r\n")
    there = tmp_path / unicodedata.normalize("NFD", "wavs/é.wav")
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(b"RIFF")
    (found,) = (e for e in read_intents(tmp_path).train if e.recording.id == "wavs/é.wav")
    assert found.recording.source == there
