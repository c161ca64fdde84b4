"""Which utterances are learnt from and tested on: never the same, by speaker where it can be."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dinosr_jax.data.phones.phones import Phone
from dinosr_jax.evaluation import utterances
from dinosr_jax.evaluation.utterances import (
    LabelError,
    Labelled,
    describe,
    divide,
    find_alignment,
    phones_of_frames,
    spell,
)
from dinosr_jax.inference.recordings import Recording

CONV = ((64, 10, 5),) + ((64, 3, 2),) * 4 + ((64, 2, 2),) * 2


def some(names, *, speaker=""):
    speakers = speaker if isinstance(speaker, list) else [speaker] * len(names)
    return [
        Labelled(Recording(name, name, np.zeros(1), 16_000), (Phone(0, 1, "A"),), who)
        for name, who in zip(names, speakers, strict=True)
    ]


def ids(utterances):
    return {utterance.recording.id for utterance in utterances}


def test_one_speaker_is_divided_as_the_splits_are():
    found = divide(some("abc", speaker="x"), some("de", speaker="x"))
    assert (ids(found.train), ids(found.test)) == ({*"abc"}, {*"de"})
    assert "as the splits are" in found.rule and "the same speaker" in found.rule
    found = divide(some("abc", speaker="x"), some("cd", speaker="x"))  # overlapping splits
    assert (ids(found.train), ids(found.test)) == ({*"ab"}, {*"cd"})


def test_one_split_is_divided_by_the_id():
    names = [f"u{i}" for i in range(50)]
    found = divide([], some(names))
    assert len(found.test) == 10 and ids(found.train) | ids(found.test) == set(names)
    assert "hash" in found.rule and "not known" in found.rule
    again = divide(some(names), some(names[::-1]))  # the same split twice, in another order
    assert ids(again.test) == ids(found.test)
    more = divide([], some([*names, "v"]))
    assert len(ids(more.test) ^ ids(found.test)) <= 2  # stable
    assert len(divide([], some("ab")).train) == 1


def test_speakers_are_held_out():
    found = divide(some("ab", speaker="x"), some("cd", speaker="y"))
    assert ids(found.test) == {*"cd"} and found.rule.startswith("by speaker, as the splits are")
    speakers = [f"s{i % 10}" for i in range(60)]
    names = [f"u{i}" for i in range(60)]
    parts = [some(names[a:b], speaker=speakers[a:b]) for a, b in ((0, 40), (40, 60))]
    found = divide(*parts)
    learnt, tested = ({u.speaker for u in part} for part in found[:2])
    assert not learnt & tested and len(tested) == 2 and len(learnt) == 8
    assert ids(found.train) <= ids(parts[0]) and ids(found.test) <= ids(parts[1])
    found = divide([], parts[0])
    assert not {u.speaker for u in found.train} & {u.speaker for u in found.test}
    assert len(found.train) + len(found.test) == 40


@pytest.mark.parametrize("train", ["x", "xy", "xyz", "y", ""])
@pytest.mark.parametrize("test", ["x", "xy", "xz", "xyz"])
def test_few_speakers_leave_something_to_learn_and_to_test(train, test):
    parts = [some([f"{part}{who}{i}" for who in part_of for i in range(2)],
                  speaker=[who for who in part_of for _ in range(2)])
             for part, part_of in (("train", train), ("test", test))]  # fmt: skip
    found = divide(*parts)
    assert found.train and found.test and not ids(found.train) & ids(found.test)
    if len(set(train) | set(test)) > 1:
        assert not {u.speaker for u in found.train} & {u.speaker for u in found.test}


def test_transcripts_are_spelt(tmp_path, monkeypatch):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("A AH0\nA EY1\nCAT\tK AE1 T\nEMPTY\n\n")
    ids, texts = np.array(["x", "y", "z"]), np.array(["a Cat", "dog", ""])
    manifest = SimpleNamespace(ids=ids, texts=texts)
    monkeypatch.setattr(utterances.manifests, "load_manifest", lambda *_, **__: manifest)
    how = {"splits": ["train"], "lexicon": lexicon}
    said = lambda found: {id_: [p.label for p in ps] for id_, ps in found.utterances.items()}
    found = spell(tmp_path, **how)
    assert said(found) == {"x": ["AH0", "K", "AE1", "T"], "y": ["<UNK>"]}
    assert said(spell(tmp_path, **how, stress="strip"))["x"] == ["AH", "K", "AE", "T"]
    lexicon.write_text("HORSE HH AO R S\n")
    with pytest.raises(LabelError, match="has none of the words of train"):
        spell(tmp_path, **how)


def test_the_recipe_of_superb_has_options_of_the_command():
    from dinosr_jax.cli.probes import recognition_command

    path = Path(__file__).parents[2] / "configs" / "evaluation" / "superb_pr.py"
    recipe = runpy.run_path(str(path))["get_config"]().to_dict()
    options = {parameter.name for parameter in recognition_command.params}
    assert recipe.keys() <= options
    assert (recipe["num_steps"], recipe["batch_size"], recipe["learning_rates"]) == (
        100_000, 32, "0.01",
    )  # fmt: skip


def test_too_few():
    for parts in (([], some("a")), (some("ab"), []), (some("a"), some("a"))):
        with pytest.raises(LabelError, match="two at least"):
            divide(*parts)


def test_a_frame_has_the_phone_in_its_middle():
    """Frame i reads 400 samples from 320 i on: its middle is 12.5 ms + 20 ms i."""
    phones = (Phone(0.0, 0.0524, "A"), Phone(0.0524, 0.0724, "B"), Phone(0.1, 0.2, "C"))
    utterance = Labelled(Recording("x", "x", np.zeros(1), 1), phones)
    found = phones_of_frames(utterance, num_frames=6, conv_layers=CONV)
    assert found.tolist() == ["A", "A", "B", "SIL", "SIL", "C"]


def test_said_in_one_line(tmp_path):
    assert describe(some("ab", speaker="x")) == "2 utterances, 0.0 minutes, 1 speaker"
    assert describe(some("ab")) == "2 utterances, 0.0 minutes"
    with pytest.raises(LabelError, match="carries no phones .*--alignment=FILE"):
        find_alignment(tmp_path)
    folder = tmp_path / "audio_folder" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    table = "file\tstart_s\tend_s\tphone\n"
    (folder / "phones.tsv").write_text(table + "en/x\t0\t1\tAH0\n")
    assert find_alignment(tmp_path).utterances == {"en/x": (Phone(0, 1, "AH"),)}
    (tmp_path / "mine.tsv").write_text(table + "x\t0\t2\tAH0\n")
    found = find_alignment(tmp_path, given=tmp_path / "mine.tsv", prefix="fr/", stress="keep")
    assert found.utterances == {"fr/x": (Phone(0, 2, "AH0"),)}
