"""Warping against a plain transcription, and that a pair's distance is its own."""

import jax
import numpy as np
import pytest

from dinosr_jax.evaluation.abx import distances as fd
from dinosr_jax.evaluation.abx import dtw

pytestmark = pytest.mark.usefixtures("compile_quickly")


def warp(costs):
    """Cost of the cheapest path / its length; of equal steps the diagonal, then along the row."""
    n, m = costs.shape
    cost, length = np.full((n + 1, m + 1), np.inf), np.zeros((n + 1, m + 1), int)
    cost[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            steps = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
            at = min(steps, key=lambda step: cost[step])  # the first of equal ones
            cost[i, j] = costs[i - 1, j - 1] + cost[at]
            length[i, j] = 1 + length[at]
    return cost[n, m] / length[n, m]


def frames_of(units):
    units = np.asarray(units, np.int32)
    return fd.Frames(units, np.zeros((len(units), 0), np.float32), np.zeros(len(units), np.float32))


def angular(x):
    values, own = fd.prepare(x, distance="angular")
    return fd.Frames(fd.equal_frames(values), values, own)


@pytest.fixture
def small_calls(monkeypatch):
    """Several tables and several calls of few lanes."""
    monkeypatch.setattr(dtw, "_TABLE_BYTES", 3 * 4 * 128**2)
    monkeypatch.setattr(dtw, "_lanes", lambda pairs: 32)


def random_pairs(rng, *, frames, longest, items=40, pairs=200):
    lengths = rng.integers(1, longest + 1, items)
    lengths[:2] = 1, longest
    starts = rng.integers(0, frames - longest, items)
    return dtw.ItemFrames(starts, lengths), *rng.integers(0, items, (2, pairs))


def check(frames, lattice, items, first, second, distance, tolerance):
    found = dtw.pair_distances(frames, items, first, second, distance=distance)
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        one, other = (slice(items.starts[i], items.starts[i] + items.lengths[i]) for i in (a, b))
        costs = lattice[one, other]
        assert found.forward[k] == pytest.approx(warp(costs), abs=tolerance)
        assert found.backward[k] == pytest.approx(warp(costs.T), abs=tolerance)


@pytest.mark.parametrize(("longest", "pairs"), [(9, 100), (150, 5)])
def test_units_with_many_ties(small_calls, longest, pairs):
    rng = np.random.default_rng(0)
    units = rng.integers(0, 3, 400)
    chosen = random_pairs(rng, frames=400, longest=longest, pairs=pairs)
    lattice = (units[:, None] != units[None, :]).astype(float)
    check(frames_of(units), lattice, *chosen, "identical", 1e-6)


def test_angles(small_calls):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 7)).astype(np.float32)
    exact = x / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    lattice = np.arccos(np.clip(exact @ exact.T, -1, 1)) / np.pi
    check(
        angular(x), lattice, *random_pairs(rng, frames=300, longest=25, pairs=60), "angular", 1e-6
    )


def test_hand_computed_paths():
    # rows 0 1, columns 0 1 1: two diagonal steps and one along the row, all at no cost
    # rows 0, columns 1 1 0: the only path has 3 frames, two of which differ
    # rows 0 1, columns 1 0: 1 + 1 along the diagonal, of 2 frames
    # rows 0 0, columns 1 1 1: cost 3; the last step is diagonal, so 3 frames
    frames = frames_of([0, 1, 1, 1, 0, 9, 0, 0, 1, 1, 1])
    items = dtw.ItemFrames(np.array([0, 0, 0, 2, 3, 6, 8]), np.array([2, 3, 1, 3, 2, 2, 3]))
    first, second = np.array([0, 2, 0, 5]), np.array([1, 3, 4, 6])
    found = dtw.pair_distances(frames, items, first, second, distance="identical")
    np.testing.assert_allclose(found.forward, [0, 2 / 3, 1, 1], rtol=1e-6)


def test_equal_steps_prefer_the_row_as_seen_from_the_rows():
    """A whole lattice of small whole numbers, where the order of the arguments matters."""
    rng = np.random.default_rng(3)
    lattices = rng.integers(0, 3, (300, 5, 6)).astype(np.float32)
    shape = lambda size: np.full(300, size, np.int32)
    first = np.arange(300, dtype=np.int32) * 30
    found = dtw.align(lattices.ravel(), first, shape(5), shape(6), stride=6, longest=32)
    for values, turned in zip(found, (lattices, lattices.transpose(0, 2, 1)), strict=True):
        np.testing.assert_allclose(values, [warp(lattice) for lattice in turned], rtol=1e-6)
    assert (np.asarray(found[0]) != np.asarray(found[1])).any()


def test_a_pair_does_not_depend_on_the_others(monkeypatch):
    rng = np.random.default_rng(2)
    frames = angular(rng.normal(size=(500, 40)).astype(np.float32))
    items, first, second = random_pairs(rng, frames=500, longest=20)
    find = lambda a, b: dtw.pair_distances(frames, items, a, b, distance="angular")
    whole = find(first, second)
    order = rng.permutation(len(first))
    mixed = find(first[order], second[order])
    np.testing.assert_array_equal(whole.forward[order], mixed.forward)
    few = find(first[:3], second[:3])
    np.testing.assert_array_equal(whole.forward[:3], few.forward)
    monkeypatch.setattr(dtw, "_lanes", lambda pairs: 64)
    np.testing.assert_array_equal(whole.backward, find(first, second).backward)


def test_few_shapes_are_compiled():
    rng = np.random.default_rng(4)
    frames = frames_of(rng.integers(0, 9, 500))
    before = dtw.align._cache_size(), dtw._tables._cache_size()
    for pairs, longest in ((3, 5), (700, 31), (4000, 32)):
        chosen = random_pairs(rng, frames=500, longest=longest, pairs=pairs)
        dtw.pair_distances(frames, *chosen, distance="identical")
    assert dtw.align._cache_size() - before[0] <= 1
    assert dtw._tables._cache_size() - before[1] <= 1


def test_nothing_to_compare_and_progress():
    frames, items = frames_of([1, 2, 3]), dtw.ItemFrames(np.array([0, 1]), np.array([2, 1]))
    none = np.zeros(0, int)
    assert len(dtw.pair_distances(frames, items, none, none, distance="identical").forward) == 0
    done = []
    first, second = np.array([0, 0, 1]), np.array([1, 0, 1])
    dtw.pair_distances(frames, items, first, second, distance="identical", progress=done.append)
    assert sum(done) == 3


def test_on_another_device():
    frames, items = frames_of([1, 2, 3]), dtw.ItemFrames(np.array([0, 1]), np.array([2, 1]))
    with jax.default_device(jax.devices()[-1]):
        found = dtw.pair_distances(
            frames, items, np.array([0]), np.array([1]), distance="identical"
        )
    assert found.forward == pytest.approx(0.5)
