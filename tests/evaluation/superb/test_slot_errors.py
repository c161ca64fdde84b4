"""F1 and CER of slots against cases counted by hand."""

import pytest

from dinosr_jax.evaluation.superb.slot_errors import type_f1, value_cer, values_of_slots
from dinosr_jax.evaluation.utterances import LabelError

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
