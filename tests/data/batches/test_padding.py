import itertools

import numpy as np
import pytest

from dinosr_jax.data.batches.padding import EMPTY, PaddedPlan, padded_lengths

LENGTHS = np.random.default_rng(0).integers(400, 48_000, 40)


def cost(lengths, rungs):
    return sum(min(rung for rung in rungs if rung >= length) for length in lengths)


def choices(grid, most):
    """All ladders of a grid up to so many rungs, with its last."""
    for number in range(most):
        yield from ((*some, grid[-1]) for some in itertools.combinations(grid[:-1], number))


@pytest.mark.parametrize("max_rungs", [1, 2, 3])
def test_lengths_pad_as_little_as_any(max_rungs):
    found = padded_lengths(LENGTHS, max_rungs=max_rungs)
    grid = [1600 * k + 80 for k in range(1, 31)]
    assert len(found) <= max_rungs and set(found) <= set(grid)
    assert cost(LENGTHS, found) == min(cost(LENGTHS, rungs) for rungs in choices(grid, max_rungs))


@pytest.mark.parametrize("price", [0.0, 9_000.0, 60_000.0, 1e9])
def test_each_length_more_saves_its_price(price):
    lengths = LENGTHS.clip(max=9 * 1600)
    found = padded_lengths(lengths, max_rungs=5, price=price)
    grid = [1600 * k + 80 for k in range(1, 10)]
    paid = lambda rungs: cost(lengths, rungs) + price * len(rungs)
    assert paid(found) == min(map(paid, choices(grid, 5)))
    assert len(found) == {0.0: 5, 1e9: 1}.get(price, len(found))


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("budget, multiple", [(13.0, 4), (32.0, 4), (500.0, 8), (4.0, 1)])
def test_an_epoch_has_every_utterance_once(seed, budget, multiple):
    plan = PaddedPlan(LENGTHS, seed=seed, max_batch_seconds=budget, batch_multiple=multiple)
    for epoch in range(2):
        batches = [plan.batch(epoch * plan.num_batches + k) for k in range(plan.num_batches)]
        used = np.concatenate([b.indices for b in batches])
        assert sorted(used[used != EMPTY]) == list(range(len(LENGTHS)))
        for batch in batches:
            real = batch.indices[batch.indices != EMPTY]
            assert len(real) and len(batch.indices) % multiple == 0
            assert len(batch.indices) * batch.num_samples <= budget * 16_000
            assert LENGTHS[real].max() <= batch.num_samples and not batch.starts.any()
    assert len({(len(b.indices), b.num_samples) for b in batches}) <= 12


def test_a_batch_follows_from_its_step_alone():
    make = lambda seed: PaddedPlan(LENGTHS, seed=seed, max_batch_seconds=13, batch_multiple=4)
    plan, again = make(3), make(3)
    forwards = [plan.batch(k).indices for k in range(3 * plan.num_batches)]
    for step in reversed(range(3 * plan.num_batches)):
        assert np.array_equal(again.batch(step).indices, forwards[step])
    first, second = forwards[: plan.num_batches], forwards[plan.num_batches : 2 * plan.num_batches]
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    others = [make(4).batch(k).indices for k in range(plan.num_batches)]
    assert any(not np.array_equal(a, b) for a, b in zip(first, others, strict=True))


def test_few_rows_are_empty():
    plan = PaddedPlan(np.full(65, 16_000), seed=0, max_batch_seconds=70, batch_multiple=8)
    rows = sum(len(plan.batch(k).indices) for k in range(plan.num_batches))
    assert rows == 80  # two batches of 40, not of 64


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="max_batch_seconds = 2"):
        PaddedPlan(LENGTHS, seed=0, max_batch_seconds=2, batch_multiple=4)
    with pytest.raises(ValueError, match="no utterance"):
        PaddedPlan(np.empty(0, int), seed=0, max_batch_seconds=2, batch_multiple=4)
    with pytest.raises(ValueError, match="step is -1"):
        PaddedPlan(LENGTHS, seed=0, max_batch_seconds=32, batch_multiple=4).batch(-1)


def test_summary_says_what_is_padding():
    text = PaddedPlan(LENGTHS, seed=0, max_batch_seconds=32, batch_multiple=4).summary()
    assert "40 utterances" in text and "% of what is computed is padding" in text


@pytest.mark.parametrize(("field", "hop", "frames"), [(185, 160, 10), (645, 640, 2), (400, 240, 7)])
def test_lengths_are_of_whole_frames_whatever_the_network(field, hop, frames):
    plan = PaddedPlan(LENGTHS, seed=0, max_batch_seconds=32, batch_multiple=4, field=field, hop=hop)
    for rung in plan.rungs:
        count = (rung.num_samples - field) // hop + 1
        assert rung.num_samples == field + (count - 1) * hop and count % frames == 0
    longest = int(max(LENGTHS))
    assert longest <= plan.rungs[-1].num_samples < longest + frames * hop
    shortest = field + (frames - 1) * hop
    assert padded_lengths(np.array([1, 2]), max_rungs=3, field=field, hop=hop) == (shortest,)
