"""The plan against brute force, a slow transcription, and its promises on adversarial lengths."""

import itertools
import time

import numpy as np
import pytest

from dinosr_jax.data.batches.crops import BatchPlan, by_step, ladders, plan_options
from dinosr_jax.data.batches.lengths import lengths_of_frames, shortest_length
from dinosr_jax.recipes import published_recipe

SECOND = 16_000
GENERATOR = np.random.Generator(np.random.Philox(key=11))

LENGTHS = {
    "natural": np.clip(GENERATOR.gamma(4, 3, 700), 0.3, 40) * SECOND,
    "all equal": np.full(100, 5.0) * SECOND,
    "one giant": np.append(np.full(60, 2.5), 3600) * SECOND,
    "tiny corpus": np.linspace(1, 9, 8) * SECOND,
    "nine": np.linspace(2, 30, 9) * SECOND,
    "seven long, one short": np.append(np.full(7, 600), 2) * SECOND,
    "two clusters": np.repeat([1.0, 19.9], [500, 17]) * SECOND,
    "shorter than a frame": np.append(np.full(50, 0.01), np.full(30, 4)) * SECOND,
    "all distinct": np.arange(1, 20_001, 10) * 16,
}
PARAMETERS = {"seed": 3, "max_batch_seconds": 160, "max_seconds": 20, "batch_multiple": 8}


def make_plan(lengths, **changed) -> BatchPlan:
    return BatchPlan(np.asarray(lengths).astype(np.int64), **{**PARAMETERS, **changed})


def slow_ladder_loss(lengths, rungs, cap) -> int:
    loss = 0
    for length in lengths:
        length = min(int(length), cap)
        loss += length - max([rung for rung in rungs if rung <= length], default=0)
    return loss


@pytest.mark.parametrize("key", [1, 2])
def test_ladders_are_optimal(key):
    random = np.random.Generator(np.random.Philox(key=key))
    cap = 320 * 62
    grid = [320 * t + 80 for t in range(5, 62, 5)]
    for _ in range(25):
        lengths = random.integers(500, 320 * 90, random.integers(1, 12))
        lengths[::2] = random.choice(grid, len(lengths[::2]))  # a rung exactly, too
        if max(lengths) < grid[0]:
            continue
        capped = np.minimum(lengths, cap)
        for size, rungs in enumerate(ladders(capped, grid=np.array(grid), max_rungs=4), 1):
            assert len(rungs) == size and sorted({*rungs} & {*grid}) == list(rungs)
            choices = itertools.combinations(grid, size)
            best = min(slow_ladder_loss(lengths, choice, cap) for choice in choices)
            assert slow_ladder_loss(lengths, rungs, cap) == best


def slow_counts(lengths, rungs, *, budget, multiple):
    """Batch sizes and numbers of batches, one utterance at a time, from the longest rung down."""
    waiting = {rung: 0 for rung in rungs}
    for length in lengths:
        reached = [rung for rung in rungs if rung <= length]
        if reached:
            waiting[max(reached)] += 1
    result, moved = {}, 0
    for rung in sorted(rungs, reverse=True):
        pool, size = waiting[rung] + moved, 0
        while size + multiple <= pool and (size + multiple) * rung <= budget:
            size += multiple
        batches = 0
        while size and pool >= size:
            pool, batches = pool - size, batches + 1
        result[rung], moved = (size, batches), pool
    return result


@pytest.mark.parametrize("name", LENGTHS)
def test_counts_equal_the_slow_transcription(name):
    plan = make_plan(LENGTHS[name])
    rungs = [rung.num_samples for rung in plan.rungs]
    expected = slow_counts(LENGTHS[name], rungs, budget=160 * SECOND, multiple=8)
    assert {r.num_samples: (r.batch_size, r.num_batches) for r in plan.rungs} == expected


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_promises_of_an_epoch(name, multiple):
    lengths = LENGTHS[name].astype(np.int64)
    plan = make_plan(lengths, batch_multiple=multiple)
    assert 1 <= len(plan.rungs) <= 12
    shapes = {(rung.batch_size, rung.num_samples): 0 for rung in plan.rungs}
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * plan.num_batches, (epoch + 1) * plan.num_batches):
            batch = plan.batch(step)
            assert len(batch.indices) % multiple == 0 and len(batch.indices) > 0
            assert len(batch.indices) * batch.num_samples <= 160 * SECOND
            assert batch.num_samples <= 20 * SECOND
            assert (batch.starts >= 0).all()
            assert (batch.starts + batch.num_samples <= lengths[batch.indices]).all()
            shapes[len(batch.indices), batch.num_samples] += 1
            seen += batch.indices.tolist()
        assert len(seen) == len(set(seen))  # at most once an epoch
        dropped = (lengths >= plan.rungs[0].num_samples).sum() - len(seen)
        assert dropped < plan.rungs[0].batch_size
    assert list(shapes.values()) == [2 * rung.num_batches for rung in plan.rungs]


@pytest.mark.parametrize("name", LENGTHS)
def test_the_number_of_rungs_loses_least(name):
    def kept(plan):
        return sum(r.num_samples * r.batch_size * r.num_batches for r in plan.rungs)

    lengths = LENGTHS[name]
    most = kept(make_plan(lengths))
    assert most >= max(kept(make_plan(lengths, max_rungs=count)) for count in range(1, 12))
    for rung in range(320 * 5 + 80, 20 * SECOND, 320 * 5):
        size, batches = slow_counts(lengths, [rung], budget=160 * SECOND, multiple=8)[rung]
        assert most >= rung * size * batches


def test_summary_counts_what_is_lost():
    lengths = LENGTHS["natural"].astype(np.int64)
    plan = make_plan(lengths)
    capped = np.minimum(lengths, 20 * SECOND)
    rungs = [rung.num_samples for rung in plan.rungs]
    to_ladder = slow_ladder_loss(lengths, rungs, 20 * SECOND) / capped.sum()
    batches = map(plan.batch, range(plan.num_batches))
    kept = sum(batch.num_samples * len(batch.indices) for batch in batches)
    to_leftovers = 1 - kept / capped.sum() - to_ladder
    text = plan.summary()
    assert f"loses {to_ladder:.1%} to the ladder and {to_leftovers:.1%} to leftovers" in text
    assert f"cropped to it: {1 - capped.sum() / lengths.sum():.1%} of the audio" in text
    assert f"{plan.num_batches} batches an epoch" in text


def same(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_any_step_in_any_order_is_the_same_batch():
    plan, fresh = make_plan(LENGTHS["natural"]), make_plan(LENGTHS["natural"])
    steps = [0, 1, plan.num_batches - 1, plan.num_batches, 5 * plan.num_batches + 3, 10**6]
    forwards = {step: plan.batch(step) for step in range(2 * plan.num_batches)}
    forwards.update({step: plan.batch(step) for step in steps})
    for step in [*reversed(steps), *range(2 * plan.num_batches)]:
        assert same(forwards[step], fresh.batch(step))


def test_seeds_and_epochs_differ_but_not_in_counts():
    plan, other = make_plan(LENGTHS["natural"]), make_plan(LENGTHS["natural"], seed=4)
    assert plan.rungs == other.rungs
    assert not same(plan.batch(0), other.batch(0))
    assert not same(plan.batch(0), plan.batch(plan.num_batches))

    def rungs(epoch):
        first = epoch * plan.num_batches
        return [plan.batch(first + step).num_samples for step in range(plan.num_batches)]

    assert rungs(0) != rungs(1) and sorted(rungs(0)) == sorted(rungs(1))


def test_leftovers_are_drawn_anew_and_crops_are_uniform():
    plan = make_plan(np.full(100, 2.0) * SECOND, max_batch_seconds=128, max_seconds=1)
    used = np.zeros(100)
    starts = []
    for epoch in range(60):
        for step in range(plan.num_batches):
            batch = plan.batch(epoch * plan.num_batches + step)
            used[batch.indices] += 1
            starts.append(batch.starts)
    (rung,) = plan.rungs
    per_epoch = rung.batch_size * rung.num_batches
    assert per_epoch < 100 and used.min() > 0  # who is left over changes
    starts = np.concatenate(starts) / (2 * SECOND - rung.num_samples)
    assert starts.min() < 0.01 and starts.max() > 0.99 and abs(starts.mean() - 0.5) < 0.02


def test_leftovers_move_down_a_rung():
    lengths = np.repeat([10.0, 5.0], [13, 11]) * SECOND
    plan = make_plan(lengths, max_batch_seconds=80, max_rungs=2)
    assert [(r.batch_size, r.num_batches) for r in plan.rungs] == [(16, 1), (8, 1)]
    short = next(b for b in map(plan.batch, range(2)) if len(b.indices) == 16)
    assert (short.indices < 13).sum() == 5  # 13 - 8 long ones are cropped further


def test_batches_do_not_change_with_later_epochs_in_threads():
    from concurrent.futures import ThreadPoolExecutor

    plan, serial = make_plan(LENGTHS["natural"]), make_plan(LENGTHS["natural"])
    steps = list(GENERATOR.integers(0, 6 * plan.num_batches, 200))
    with ThreadPoolExecutor(8) as pool:
        for step, batch in zip(steps, pool.map(plan.batch, steps), strict=True):
            assert same(batch, serial.batch(step))


@pytest.mark.parametrize(
    ("lengths", "changed", "message"),
    [
        (np.full(7, 5) * SECOND, {}, "7 utterances .* batch_multiple = 8"),
        (np.zeros(0, int), {}, "0 utterances"),
        (np.full(50, 1000), {}, "0 utterances of at least 0.105 s"),
        (np.full(50, 5) * SECOND, {"max_batch_seconds": 0.5}, "Raise max_batch_seconds"),
        (np.full(50, 5) * SECOND, {"batch_multiple": 0}, "batch_multiple is 0"),
        (np.full(50, 5) * SECOND, {"max_rungs": 0}, "max_rungs is 0"),
        (np.full(50, 5) * SECOND, {"seed": -1}, "seed is -1"),
        (np.full((5, 5), 5) * SECOND, {}, "shape"),
    ],
)
def test_what_cannot_be_planned_is_refused(lengths, changed, message):
    with pytest.raises(ValueError, match=message):
        make_plan(lengths, **changed)


# LibriSpeech's 281,241 training utterances, in 1/10,000 from 0.5 s on, a bin each half second.
# Derived from the quantiles in k2-fsa/icefall, egs/librispeech/ASR/local/
# display_manifest_statistics.py (lhotse's of each subset in three copies, at speed 0.9, 1 and 1.1):
# this is the histogram whose three copies have those quantiles (non-negative least squares, error
# under 0.1 %) and the published 100.6, 363.6 and 496.7 hours.
LIBRISPEECH = [
    3, 1, 20, 108, 146, 136, 135, 152, 164, 161, 151, 146, 142, 133, 133, 137, 136, 143, 147, 162,
    177, 207, 253, 333, 456, 625, 805, 972, 1076, 1099, 932, 441, 144, 16, 0, 1, 6,
]  # fmt: skip


def librispeech_lengths(count: int = 281_241) -> np.ndarray:
    edges = 0.5 + 0.5 * np.arange(len(LIBRISPEECH) + 1)
    below = np.concatenate([[0], np.cumsum(LIBRISPEECH)]) / sum(LIBRISPEECH)
    seconds = np.interp((np.arange(count) + 0.5) / count, below, edges)
    return (np.random.Generator(np.random.Philox(key=5)).permutation(seconds) * SECOND).astype(int)


def ladder_loss(plan: BatchPlan) -> float:
    line = next(line for line in plan.summary().split("\n") if "to the ladder" in line)
    return float(line.split("loses ")[1].split("%")[0]) / 100


@pytest.mark.parametrize(("batch_multiple", "num_devices"), [(16, 16), (256, 256)])
def test_librispeech_is_planned_in_seconds_and_loses_little(batch_multiple, num_devices):
    lengths = librispeech_lengths()
    assert abs(lengths.sum() / SECOND / 3600 - 960.9) < 10 and len(lengths) == 281_241
    lengths = lengths[lengths >= 2 * SECOND]
    options = plan_options(published_recipe().data) | {"batch_multiple": batch_multiple}
    start = time.process_time()
    plan = BatchPlan(lengths, seed=0, **options)
    first = plan.batch(399_999)  # of the last epoch
    assert time.process_time() - start < 10
    assert len(first.indices) % num_devices == 0
    assert len(plan.rungs) <= 12 and ladder_loss(plan) <= 0.03


def test_one_crop_each_cannot_lose_as_little_on_librispeech():
    """Why utterances are cut: the ladder is optimal, and 12 rungs are too few."""
    lengths = librispeech_lengths(20_000)
    lengths = lengths[lengths >= 2 * SECOND]
    grid = lengths_of_frames(20 * SECOND, field=400, hop=320)
    choices = ladders(np.minimum(lengths, 20 * SECOND), grid=grid, max_rungs=18)
    lost = [slow_ladder_loss(lengths, choices[k - 1], 20 * SECOND) for k in (12, 18)]
    assert 0.04 < lost[0] / lengths.sum() < 0.05 and lost[1] / lengths.sum() <= 0.03


@pytest.mark.parametrize("name", ["natural", "all distinct", "tiny corpus", "two clusters"])
@pytest.mark.parametrize("max_ladder_loss", [0.0, 0.02, 0.04])
def test_what_is_cut_in_two_is_used_once(name, max_ladder_loss):
    lengths = LENGTHS[name].astype(np.int64)
    whole, plan = make_plan(lengths), make_plan(lengths, max_ladder_loss=max_ladder_loss)
    assert ladder_loss(plan) <= max(ladder_loss(whole), max_ladder_loss) + 1e-3
    for epoch in range(2):
        stretches: dict[int, list] = {}
        for step in range(epoch * plan.num_batches, (epoch + 1) * plan.num_batches):
            batch = plan.batch(step)
            assert len(batch.indices) % 8 == 0
            assert len(batch.indices) * batch.num_samples <= 160 * SECOND
            for index, start in zip(batch.indices.tolist(), batch.starts.tolist(), strict=True):
                stretches.setdefault(index, []).append((start, start + batch.num_samples))
        for index, parts in stretches.items():
            parts.sort()
            assert 0 <= parts[0][0] and parts[-1][1] <= lengths[index] and len(parts) <= 2
            if len(parts) == 2:
                assert parts[0][1] <= parts[1][0]  # no sample twice in an epoch


def test_no_more_utterances_are_cut_than_needed():
    lengths = LENGTHS["natural"].astype(np.int64)
    plan = make_plan(lengths, max_ladder_loss=0.04)
    rungs = [rung.num_samples for rung in plan.rungs]
    cap = 20 * SECOND

    def best(length, count):
        sums = [0, *rungs]
        if count == 2:
            long = [rung for rung in rungs if rung >= 2 * SECOND]
            sums += [a + b for a in long for b in long]
        return max(total for total in sums if total <= min(length, cap))

    one = np.array([best(length, 1) for length in lengths])
    gains = np.sort([best(length, 2) for length in lengths] - one)[::-1]
    total = np.minimum(lengths, cap).sum()
    needed = 1 + np.searchsorted(np.cumsum(gains), (total - one.sum()) - 0.04 * total)
    assert f"  {needed} utterances" in plan.summary() and 0 < needed < len(lengths)


def test_parts_are_placed_uniformly_in_any_order():
    lengths = np.repeat([9.0, 5.2, 3.2], [40, 400, 400]) * SECOND
    plan = make_plan(lengths, max_rungs=2, max_ladder_loss=0.0)
    starts = [[], []]
    for step in range(20 * plan.num_batches):
        batch = plan.batch(step)
        for index, start in zip(batch.indices.tolist(), batch.starts.tolist(), strict=True):
            if index < 40:
                starts[batch.num_samples == plan.rungs[1].num_samples].append(start)
    assert "cut in two" in plan.summary()
    for found in starts:
        assert min(found) < 0.3 * SECOND and max(found) > 2.9 * SECOND


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="step is -1"):
        make_plan(LENGTHS["natural"]).batch(-1)


def test_a_batch_that_cannot_hold_long_utterances_crops_them_and_says_so():
    plan = make_plan(np.full(64, 19) * SECOND, max_batch_seconds=64)
    assert plan.max_samples == 8 * SECOND
    assert "not max_seconds = 20" in plan.summary()


def test_first_batch_is_pinned():
    """Changing it breaks the resumption of every run: raise the version in the changelog."""
    options = {"max_batch_seconds": 32, "max_seconds": 4, "batch_multiple": 4}
    plan = BatchPlan(np.arange(20_000, 84_000, 1000), seed=7, **options)
    batch = plan.batch(5)
    assert batch.num_samples == 62_480
    assert batch.indices.tolist() == [57, 54, 61, 43, 53, 52, 60, 59]
    assert batch.starts.tolist() == [12574, 9730, 12103, 331, 1562, 7321, 1048, 1018]


# samples that a frame sees, and from one to the next; how many frames begin in a tenth of a second
HOPS = [(400, 320, 5), (185, 160, 10), (645, 640, 2), (400, 240, 7), (5000, 4000, 1), (10, 50, 32)]


@pytest.mark.parametrize(("field", "hop", "frames"), HOPS)
def test_crops_are_of_whole_frames_whatever_the_network(field, hop, frames):
    plan = make_plan(LENGTHS["natural"], field=field, hop=hop)
    lines = plan.summary().splitlines()[2:]
    for rung, line in zip(plan.rungs, lines, strict=False):
        count = (rung.num_samples - field) // hop + 1
        assert rung.num_samples == field + (count - 1) * hop and count % frames == 0
        assert int(line.split()[1]) == count
    assert plan.rungs[-1].num_samples <= 20 * SECOND
    shortest = field + (frames - 1) * hop
    assert shortest_length(field=field, hop=hop) == shortest
    grid = lengths_of_frames(shortest + 2 * frames * hop, field=field, hop=hop)
    assert list(grid) == [shortest + k * frames * hop for k in range(3)]
    assert len(lengths_of_frames(shortest - 1, field=field, hop=hop)) == 0
    few = {"max_seconds": shortest / SECOND, "max_batch_seconds": 8 * shortest / SECOND}
    assert make_plan(np.full(9, shortest), field=field, hop=hop, **few).max_samples == shortest
    few["max_batch_seconds"] -= 8 / SECOND
    with pytest.raises(ValueError, match=f"the shortest crop is {shortest}"):
        make_plan(np.full(9, shortest), field=field, hop=hop, **few)
    with pytest.raises(ValueError, match="0 utterances of at least"):
        make_plan(np.full(9, shortest - 1), field=field, hop=hop)


def test_epochs_are_drawn_once_while_in_use():
    drawn = []
    batch = by_step(
        lambda number: drawn.append(number) or [(number, k) for k in range(3)], num_batches=3
    )
    assert [batch(step) for step in (0, 2, 3, 1)] == [(0, 0), (0, 2), (1, 0), (0, 1)]
    assert drawn == [0, 1]
    batch(30)
    batch(60)
    assert batch(0) == (0, 0) and drawn == [0, 1, 10, 20, 0]
