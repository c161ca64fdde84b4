"""Audio SNIPS: transcripts with slots, the voices of each part, what is damaged."""

import numpy as np
import pytest

from dinosr_jax.data.text_files import TextError
from dinosr_jax.evaluation.probes.examples import Example, Examples
from dinosr_jax.evaluation.probes.head_training import HeadSettings
from dinosr_jax.evaluation.superb import slots
from dinosr_jax.evaluation.superb.slots import type_f1, value_cer, values_of_slots
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
    task, labels = slots.fill_slots(Examples(*parts, (), "x"), settings=HeadSettings())
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
        slots.fill_slots(plain, settings=HeadSettings())


SAID = "PLAY B-artist NINA SIMONE E-artist IN B-city ROME E-city"


def test_values():
    assert values_of_slots(SAID) == {"artist": ["NINA SIMONE"], "city": ["ROME"]}
    assert values_of_slots("PLAY IT") == {} == values_of_slots("")
    assert values_of_slots("B-x A E-x  B-x  B C E-x") == {"x": ["A", "B C"]}
    assert values_of_slots("B-x A E-y B E-x") == {"x": ["A B"]}  # marks inside go
    assert values_of_slots("B-x A B-y B E-y C E-x") == {"x": ["A B C"]}
    assert values_of_slots("B-x A") == {} == values_of_slots("A E-x")
    assert values_of_slots("B-x  E-x") == {}  # without a value


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        (SAID, 1.0),
        ("PLAY B-artist X E-artist B-city Y E-city", 1.0),  # values do not count
        ("PLAY B-artist X E-artist", 2 / 3),  # precision 1, recall 1/2
        ("B-artist X E-artist B-date Y E-date", 1 / 2),
        ("B-artist X E-artist B-artist Y E-artist", 2 / 3),  # a set
        ("PLAY NINA SIMONE", 0.0),
        ("B-date X E-date", 0.0),
    ],
)
def test_f1_of_types(hypothesis, expected):
    assert type_f1([SAID], [hypothesis]) == pytest.approx(expected)
    assert type_f1([SAID, "YES"], [hypothesis, "NO"]) == pytest.approx((expected + 1) / 2)
    assert type_f1([hypothesis], [SAID]) == pytest.approx(expected)


def test_f1_where_there_is_no_slot():
    assert type_f1(["YES", "YES"], ["NO", "B-x A E-x"]) == 0.5


@pytest.mark.parametrize(
    ("hypothesis", "errors"),
    [
        (SAID, 0),
        ("B-artist NINA SIMONA E-artist B-city ROME E-city", 1),
        ("B-city ROME E-city", 11),  # NINA SIMONE is not found
        ("PLAY", 15),
        ("B-artist X E-artist B-artist NINA SIMON E-artist B-city ROMEO E-city", 2),  # the nearest
        (SAID + " B-date NOW E-date", 0),  # too many cost nothing
        ("B-artist ROME E-artist B-city NINA SIMONE E-city", 9 + 9),  # of the same slot only
    ],
)
def test_cer_of_values(hypothesis, errors):
    assert value_cer([SAID], [hypothesis]) == pytest.approx(errors / 15)
    # corpus level: 3 letters more, right
    both = value_cer([SAID, "B-x ABC E-x"], [hypothesis, "B-x ABC E-x"])
    assert both == pytest.approx(errors / 18)


def test_no_value_has_no_rate():
    with pytest.raises(LabelError, match="no slot"):
        value_cer(["YES"], ["B-x A E-x"])
