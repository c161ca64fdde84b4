"""Error rates against a plain edit distance."""

import contextlib
import json

import numpy as np
import pytest
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.evaluation.wer import rates
from dinosr_jax.evaluation.wer.references import Pair, Transcript
from tests.training.ctc.test_word_errors import distance

WORDS = "THE CAT SAT ON MAT A DOG RAN".split()


def random_pairs(number, *, seed, speakers=("x", "y")):
    rng = np.random.default_rng(seed)
    text = lambda: " ".join(rng.choice(WORDS, rng.integers(0, 9)))
    return [
        Pair(Transcript(f"{k}", text(), speakers[k % len(speakers)]), text()) for k in range(number)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_those_of_the_edit_distance(seed):
    pairs = random_pairs(30, seed=seed)
    found = rates.rates(pairs)
    words = sum(distance(p.reference.text.split(), p.hypothesis.split()) for p in pairs)
    characters = sum(distance(p.reference.text, p.hypothesis) for p in pairs)
    length = sum(len(p.reference.text.split()) for p in pairs)
    e = found.errors
    assert e.substitutions + e.deletions + e.insertions == words and e.words == length
    assert e.wer == words / length
    assert e.cer == characters / sum(len(p.reference.text) for p in pairs)
    assert set(found.speakers) == {"x", "y"}
    assert sum(s.words for s in found.speakers.values()) == length
    assert found.wer_interval[0] <= e.wer <= found.wer_interval[1]


def test_by_hand():
    found = rates.count("THE CAT SAT", "A CAT SAT ON")
    assert found[:5] == (1, 3, 1, 0, 1)
    assert rates.count("THE CAT", "CAT")[:5] == (1, 2, 0, 1, 0)


def test_nothing_said_and_nothing_recognised():
    pair = lambda a, b: Pair(Transcript("u", a), b)
    assert rates.rates([pair("", "")]).errors.wer == 0
    assert rates.rates([pair("", "A B")]).errors.wer == float("inf")
    found = rates.rates([pair("A B", ""), pair("", "C")]).errors
    assert (found.deletions, found.insertions, found.wer) == (2, 1, 1.5)


def test_the_interval_is_a_bootstrap_over_utterances():
    errors, lengths = np.array([0, 10]), np.array([10, 10])
    low, high = rates.interval(errors, lengths, seed=0)
    assert (low, high) == (0.0, 1.0)  # both drawn alike in a quarter of the draws each
    assert rates.interval(np.full(50, 3), np.full(50, 10), seed=0) == (0.3, 0.3)
    many = np.random.default_rng(0).binomial(10, 0.2, 400)
    low, high = rates.interval(many, np.full(400, 10), seed=1)
    deviation = many.std() / 10 / np.sqrt(400)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert rates.interval(many, np.full(400, 10), seed=1) == (low, high)


def test_both_sides_are_normalised_alike():
    pair = Pair(Transcript("u", "It’s the “Cat”, isn't it?"), "IT'S THE CAT ISN'T IT")
    assert rates.rates([pair]).errors.wer == 0
    assert rates.rates([pair], normalise="lower").errors.wer == 0
    assert rates.rates([pair], normalise="none").errors.wer == 1.0
    umlaut = Pair(Transcript("u", "Füße, bitte"), "füße bitte")
    assert rates.rates([umlaut], normalise="lower").errors.wer == 0


def test_what_is_missing():
    pairs = [Pair(Transcript("a", "X Y"), "X Y"), Pair(Transcript("b", "Z"), None)]
    with pytest.raises(ValueError, match="1 of 2 .*'b'.*--missing=delete"):
        rates.rates(pairs)
    assert rates.rates(pairs, missing="delete").errors.wer == pytest.approx(1 / 3)
    assert rates.rates(pairs, missing="leave").errors.wer == 0
    with pytest.raises(ValueError, match="none of the 1"):
        rates.rates(pairs[1:], missing="leave")


def test_what_is_shown():
    pairs = random_pairs(20, seed=5)
    found = rates.rates(pairs, num_worst=2)
    text = rates.to_text(found)
    assert text.startswith("WER ") and text.count("ref ") == 2 and "speaker: WER" in text
    plain = rates.to_dict(found)
    assert plain["wer"] == found.errors.wer and len(plain["worst"]) == 2
    assert plain["worst"][0]["word_errors"] >= plain["worst"][1]["word_errors"]


def test_json_without_a_word_in_the_references(tmp_path):
    (tmp_path / "ref.jsonl").write_text('{"id": 1, "text": ""}\n{"id": 2, "text": ""}\n')
    (tmp_path / "hyp.jsonl").write_text('{"file": "1", "text": "A"}\n{"file": "3", "text": ""}\n')
    arguments = ["evaluate", "wer", "hyp.jsonl", "--reference=ref.jsonl", "--output=out.json"]
    with contextlib.chdir(tmp_path):
        failed = CliRunner().invoke(cli, arguments)
        assert failed.exit_code == 1 and "1 of 2 utterances were not recognised" in failed.output
        done = CliRunner().invoke(cli, [*arguments, "--missing=delete"])
    assert done.exit_code == 0 and "1 of HYP are not in the reference" in done.output
    refuse = lambda name: pytest.fail(f"{name} is no JSON")
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert found["wer"] is None and found["insertions"] == 1 and found["cer_interval"][1] is None
    assert found["missing"] == ["2"] and found["not_in_reference"] == ["3"]
