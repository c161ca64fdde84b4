"""Audio SNIPS: transcripts with slots, the voices of each part, what is damaged."""

import numpy as np
import pytest

from dinosr_jax.data.text_files import TextError
from dinosr_jax.evaluation.probes.examples import Example, Examples
from dinosr_jax.evaluation.probes.head_training import Settings
from dinosr_jax.evaluation.superb import slots
from dinosr_jax.evaluation.superb.slot_errors import values_of_slots
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.inference.recordings import Recording
from tests.spoken_corpora import write, write_slots


def text(words, tags):
    return slots.to_text(slots.Tagged(tuple(words.split()), tuple(tags.split())).tokens())


def test_tokens_as_superb_writes_them():
    assert text("PLAY NINA SIMONE NOW", "O artist artist O") == (
        "PLAY B-artist NINA SIMONE E-artist NOW"
    )
    assert text("A B C", "x y y") == "B-x A E-x B-y B C E-y"
    assert text("R & B , PLEASE !", "x x x O O O") == "B-x R AND B E-x PLEASE"
    assert text("BEYONCÉ DON’T 5", "x O O") == "B-x BEYONCE E-x DON'T"
    assert text("! ?", "O O") == ""
    found = values_of_slots(text("SET NINE THIRTY FOR ME", "O time time O who"))
    assert found == {"time": ["NINE THIRTY"], "who": ["ME"]}


def test_parts_and_what_is_left_out(tmp_path):
    lines = write_slots(tmp_path, each=(4, 2, 2))
    lines += [
        "Ivy-snips-train-0 BOS SAID AGAIN EOS\tO O O Intent",
        "Ivy-snips-train-7 BOS TOO FEW EOS\tO O Intent",
        "Ivy-snips-train-8 BOS NOT THERE EOS\tO O O Intent",
        "Emma-snips-train-9 BOS ANOTHER VOICE EOS\tO O O Intent",
        "Ivy-snips-train-6\tBOS A TAG EOS\tO B-day I-day Intent",
    ]
    (tmp_path / "all.iob.snips.txt").write_text("\r\n".join(lines) + "\n")
    for name in ("Ivy-snips-train-5", "Ivy-snips-train-6", "Emma-snips-train-9"):
        write(tmp_path / "train" / f"{name}.wav", np.sin(np.arange(8000)))
    found = slots.read_slots(tmp_path)
    assert [len(part) for part in found[:3]] == [5, 2, 2]
    label = next(e.label for e in found.train if e.recording.id == "Ivy-snips-train-6")
    assert label == (("A", "TAG"), ("day", "day"))
    reasons = " | ".join(f"{name}: {reason}" for name, reason in found.left_out)
    for expected in (
        "line 9: Ivy-snips-train-0 is listed again",
        "line 10: found 2 words and 1 slots",
        "Ivy-snips-train-8: a transcript without a recording",
        "Ivy-snips-train-5.wav: no transcript",
    ):
        assert expected in reasons
    assert len(found.left_out) == 4
    everyone = slots.read_slots(tmp_path, voices="all")
    assert len(everyone.train) == 6
    (tmp_path / "slots.txt").write_text("O\nday\n")
    with pytest.raises(LabelError, match="line 1: 'count' is not among the slots of slots.txt"):
        slots.read_slots(tmp_path)


def test_missing_files_and_voices(tmp_path):
    with pytest.raises(TextError, match="slots.txt: No such file"):
        slots.read_slots(tmp_path)
    write_slots(tmp_path, each=(1, 1, 1))
    for path in (tmp_path / "test").iterdir():
        path.rename(path.with_name(path.name.replace("Brian", "Ivy")))
    with pytest.raises(LabelError, match="test: found 1 recordings, and none.*--voices=all"):
        slots.read_slots(tmp_path)


def test_labels_and_measure():
    said = {
        "train": slots.Tagged(("GO", "HOME"), ("O", "place")),
        "valid": slots.Tagged(("HOME",), ("place",)),
        "test": slots.Tagged(("ROME",), ("city",)),
    }
    parts = [(Example(Recording(part, part, np.ones(1)), label),) for part, label in said.items()]
    task, labels = slots.fill_slots(Examples(*parts, (), "x"), settings=Settings())
    assert task.head.num_outputs == 1 + 28 + 4  # blank, characters, marks of two slots
    assert len(labels["train"]) == 3 + 1 + 4 + 1 and 0 not in labels["train"]
    assert task.measure([labels["valid"]], [labels["valid"]]) == {"f1": 1.0, "cer": 0.0}
    assert task.measure([labels["valid"]], [labels["valid"][:-1]]) == {"f1": 0.0, "cer": 1.0}
    assert task.cost({"f1": 0.9, "cer": 1}) < task.cost({"f1": 0.8, "cer": 0})
    assert task.fits(labels["train"], 9) and not task.fits(labels["train"], 8)
    plain = Examples(
        parts[0], parts[1], (parts[2][0]._replace(label=slots.Tagged(("A",), ("O",))),), (), "x"
    )
    with pytest.raises(LabelError, match="'test' has a slot"):
        slots.fill_slots(plain, settings=Settings())
