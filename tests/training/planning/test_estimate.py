"""Bounds, verdict and text of an estimate, against numbers worked out by hand."""

import dataclasses
import json
import re

import pytest

from dinosr_jax.training.planning.estimate import CHIPS, GIB, Estimate

ESTIMATE = Estimate(
    topology="v5e:4x4",
    chips=16,
    mesh={"data": 8, "fsdp": 2, "tensor": 1},
    batch_size=176,
    seconds=20.0,
    raised=0,
    compute_dtype="bfloat16",
    versions="jax 1, libtpu 2",
    optimization="O0",
    compile_seconds=90.0,
    cpu_seconds=70.0,
    needed={"arguments": 3 * GIB // 2, "temporaries": 9 * GIB, "results": 7680, "code": 2**25},
    flops=19.7e12,
    flops_loops_once=5e12,
    traffic=81.9e9,
    traffic_by_place=[
        ["metered", 40.25e9],
        ["without a name", 8.19e9],
        *[[f"place {i}", (10 - i) * 0.6e9] for i in range(10)],
        ["small", 0.46e9],
    ],
    collectives=[
        ["all-reduce", 16, 28, 2 * 10**8, 3.8e8, True],
        ["all-gather", 2, 24, 10**8, 2e7, False],
    ],
)


def test_bounds_are_those_of_the_published_peaks():
    assert ESTIMATE.chip == CHIPS["v5e"]
    expected = {"computing": 0.1, "memory": 0.1, "exchange": 0.002}
    assert ESTIMATE.bounds() == pytest.approx(expected)
    assert ESTIMATE.step_seconds() == pytest.approx(0.102)
    slower = dataclasses.replace(ESTIMATE, traffic=3 * 81.9e9)
    assert slower.step_seconds() == pytest.approx(0.302)


@pytest.mark.parametrize(
    ("subject", "facts"),
    [
        ("v5e:4x4", "16 8 2 1 bfloat16"),
        ("batch", "176 20.00 11"),
        ("temporaries", "9.00"),
        ("fits", "10.53 15.75"),
        ("products", "19.70"),
        ("all-reduce", "0.200 16 28 0.380"),
        ("all-gather", "0.100 2 24 0.020 ONE"),  # of a loop whose turns nobody knows
        ("an update", "0.102"),
        ("computing", "0.100"),
        ("exchange", "0.002"),
        ("audio a second", "34,510 36,000 1.0"),
        ("O2", "O2"),  # what is compiled here moves more
    ],
)
def test_text_of_one_that_fits(subject, facts):
    """Every fact is in the line of its subject, whatever the words around it."""
    (line,) = (line for line in ESTIMATE.to_text(36_000).splitlines() if subject in line)
    assert set(facts.split()) <= set(re.findall(r"[\d.,]*\d|\w+", line))


def test_the_ten_places_with_the_most_traffic_and_the_rest_add_up():
    lines = ESTIMATE.to_text(1).splitlines()
    (head,) = (i for i, line in enumerate(lines) if "by place" in line)
    assert "90.0%" in lines[head]  # has a place
    rows = [re.match(r" +([\d.]+) GB  (.+)", line) for line in lines[head + 1 : head + 12]]
    assert [row[2] for row in rows[:3]] == ["metered", "without a name", "place 0"]
    assert rows[10][2] == "the rest, 3 places"
    assert sum(float(row[1]) for row in rows) == pytest.approx(81.9, abs=0.06)
    assert lines[head + 12] == ""
    assert sum(size for _, size in ESTIMATE.traffic_by_place) == pytest.approx(ESTIMATE.traffic)
    few = dataclasses.replace(ESTIMATE, traffic_by_place=[["all of it", 81.9e9]]).to_text(1)
    assert "GB  all of it" in few and "100.0%" in few and "the rest" not in few


def test_what_the_text_leaves_out():
    text = ESTIMATE.to_text(36_000)
    assert "batch_multiple" not in text and "NOT" not in text
    known = dataclasses.replace(ESTIMATE, collectives=ESTIMATE.collectives[:1])
    assert "ONE" not in known.to_text(1)
    assert "O2" not in dataclasses.replace(ESTIMATE, optimization="O2").to_text(1).splitlines()[-1]
    raised = dataclasses.replace(ESTIMATE, raised=256).to_text(1)
    assert "config.data.batch_multiple=256" in raised


def test_text_of_one_that_does_not_fit():
    larger = ESTIMATE.needed | {"temporaries": 29 * GIB // 2}  # by themselves they would
    found = dataclasses.replace(ESTIMATE, needed=larger)
    assert not found.fits and "DOES NOT FIT: 16.03 of 15.75 GiB" in found.to_text(1)
    refused = dataclasses.replace(
        ESTIMATE, needed={"in all": 21 * GIB}, out_of_memory="Used 21.0G of 15.75G hbm"
    )
    text = refused.to_text(1)
    assert not refused.fits and "DOES NOT FIT: Used 21.0G of 15.75G hbm" in text
    assert "optimizer.accumulation_steps" in text and "at least" not in text


def test_json_has_what_the_text_has():
    found = json.loads(json.dumps(ESTIMATE.to_dict()))
    assert found["fits"] is True and found["step_seconds"] == pytest.approx(0.102)
    assert found["chip"]["memory"] == 16 and found["batch_size"] == 176
