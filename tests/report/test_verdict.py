"""The answer in words: right where it is good, and honest where it is bad."""

import pytest

from dinosr_jax.evaluation.result_files import Validated
from dinosr_jax.report.verdict import find_answer, sentences


def row(system, pnmi, layer=None, size=64):
    return {"system": system, "layer": layer, "pnmi": pnmi, "num_units": size}


def result(*rows):
    return {"kind": "units", "rows": list(rows)}


def lead_of(units, mfcc, untrained):
    rows = (row("codebook", units, 3), row("mfcc", mfcc), row("untrained", untrained, 2))
    return sentences(find_answer([result(*rows)]))


def test_better_than_both():
    first, second, third = lead_of(0.423, 0.372, 0.1)
    assert first == "The units of layer 3 tell 42.3% of what there is to know about the phones."
    assert second == "That is better than k-means on MFCC, which tells 37.2%."
    assert third == "The same network untrained tells 10.0%: training has helped."


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((0.15, 0.37, 0.1), "worse than k-means on MFCC, which tells 37.0%: this network has not"),
        ((0.375, 0.37, 0.1), "no better than k-means on MFCC"),
        ((0.365, 0.37, 0.1), "no better than k-means on MFCC"),
        ((0.15, 0.37, 0.155), "untrained tells as much, 15.5%: nothing is learnt"),
        ((0.15, 0.37, 0.3), "untrained tells more, 30.0%: training has harmed"),
    ],
)
def test_not_better(figures, expected):
    assert expected in " ".join(lead_of(*figures))


def test_the_best_layer_and_the_newest_whole_result_are_taken():
    rows = [row("codebook", 0.2, 2), row("head", 0.3, 4), row("codebook", 0.25, 3)]
    rows += [row("mfcc", 0.37), row("untrained", 0.1, 1), row("untrained", 0.12, 4)]
    whole, part = result(*rows), result(row("codebook", 0.9, 2))
    answer = find_answer([part, whole, result(*rows[:-1])])
    assert answer.result is whole
    assert (answer.units["layer"], answer.untrained["layer"]) == (4, 4)
    assert find_answer([part, result(row("codebook", 0.1, 1))]).result is part
    assert find_answer([]) is None


def test_the_layer_that_validation_chose_is_taken():
    rows = [row("codebook", 0.2, 2), row("codebook", 0.25, 3), row("untrained", 0.1, 2)]
    of_test = result(*rows) | {"data": "test of here"}
    answer = find_answer([of_test], Validated(2, "validation"))
    assert answer.units["layer"] == 2
    assert sentences(answer)[-1] == "The layer was chosen while training, on validation."
    for validated in (None, Validated(1, "validation"), Validated(2, "test")):
        answer = find_answer([of_test], validated)
        assert answer.units["layer"] == 3
        assert sentences(answer)[-1].endswith("the very speech that it is measured on.")
    assert "very speech" not in " ".join(lead_of(0.3, 0.2, 0.1))


def test_baselines_of_as_many_units_come_first_and_others_are_said():
    rows = [row("codebook", 0.4, 3), row("mfcc", 0.5, size=256), row("mfcc", 0.37)]
    answer = find_answer([result(*rows)])
    assert answer.mfcc["num_units"] == 64
    assert not any("differ" in sentence for sentence in sentences(answer))
    (*_, last) = sentences(find_answer([result(*rows[:2])]))
    assert "units found, layer 3 64, k-means on MFCC 256" in last and "raise PNMI" in last


def test_what_is_not_measured_is_said():
    assert "not measured" in sentences(find_answer([result(row("mfcc", 0.3))]))[0]
    texts = " ".join(sentences(find_answer([result(row("codebook", 0.3, 2))])))
    assert texts.count("not measured") == 2


@pytest.mark.parametrize("pnmi", [None, "0.3", float("nan"), float("inf"), True, [0.3]])
def test_what_is_no_number_is_not_taken(pnmi):
    assert find_answer([result(row("codebook", pnmi, 2))]) is None
