"""The plan for held-out speech: nothing is lost, and what fills batches is empty."""

import numpy as np
import pytest

from dinosr_jax.data.batches.crops import BatchPlan
from dinosr_jax.data.batches.held_out import HeldOutPlan
from dinosr_jax.data.batches.padding import EMPTY

SECOND = 16_000
OPTIONS = {"seed": 0, "max_batch_seconds": 32.0, "max_seconds": 4.0, "max_rungs": 3}


def lengths_of(number):
    return np.random.default_rng(number).integers(SECOND, 6 * SECOND, number)


@pytest.mark.parametrize("number", [1, 2, 7, 8, 9, 23, 200])
@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_every_utterance_is_used_once_and_crops_lie_inside(number, multiple):
    lengths = lengths_of(number)
    plan = HeldOutPlan(lengths, batch_multiple=multiple, **OPTIONS)
    batches = [plan.batch(step) for step in range(plan.num_batches)]
    for batch in batches:
        assert len(batch.indices) == len(batch.starts) and len(batch.indices) % multiple == 0
        assert len(batch.indices) * batch.num_samples <= 32 * SECOND
        real = batch.indices != EMPTY
        assert real.any() and (np.diff(real.astype(int)) <= 0).all()  # empty rows come last
        ends = batch.starts[real] + batch.num_samples
        assert (batch.starts[real] >= 0).all() and (ends <= lengths[batch.indices[real]]).all()
    used = np.concatenate([batch.indices for batch in batches])
    assert sorted(used[used != EMPTY]) == list(range(number))
    if number <= multiple:
        longest = min(lengths.min(), 4 * SECOND, 32 * SECOND // multiple)
        assert [longest - 1600 < batch.num_samples <= longest for batch in batches] == [True]
    assert "never used" not in plan.summary()


def test_whole_batches_are_those_of_training_and_the_rest_comes_last():
    lengths = lengths_of(200)
    train, plan = (kind(lengths, batch_multiple=8, **OPTIONS) for kind in (BatchPlan, HeldOutPlan))
    assert train.num_batches < plan.num_batches <= train.num_batches + 2
    for step in range(train.num_batches):
        for one, other in zip(train.batch(step), plan.batch(step), strict=True):
            np.testing.assert_array_equal(one, other)
    assert 0 < (plan.batch(plan.num_batches - 1).indices == EMPTY).sum() < 8
    for step in range(plan.num_batches):  # every epoch is the same
        later = plan.batch(step + plan.num_batches)
        np.testing.assert_array_equal(later.indices, plan.batch(step).indices)


def test_what_is_shorter_than_any_crop_is_left_out_and_counted():
    plan = HeldOutPlan(np.array([1679, 1680, 50_000]), batch_multiple=8, **OPTIONS)
    batch = plan.batch(0)
    assert (plan.num_batches, batch.num_samples) == (1, 1680)
    assert sorted(batch.indices) == [EMPTY] * 6 + [1, 2]
    assert "1 are shorter than the shortest crop: never used" in plan.summary()


@pytest.mark.parametrize(
    ("lengths", "changed", "message"),
    [
        (np.zeros(0, int), {}, "0 utterances"),
        (np.full(9, 1000), {}, "0 utterances of at least 0.105 s .* lower --config.data.min_sec"),
        (np.full(9, SECOND), {"max_batch_seconds": 0.5}, "Raise max_batch_seconds"),
        (np.full(9, SECOND), {"batch_multiple": 0}, "batch_multiple is 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(lengths, changed, message):
    with pytest.raises(ValueError, match=message):
        HeldOutPlan(lengths, **({"batch_multiple": 8} | OPTIONS | changed))
