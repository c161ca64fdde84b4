"""Distances between frames against their formulas in float64."""

import jax
import numpy as np
import pytest

from dinosr_jax.evaluation.abx import distances as fd


def tile(x, distance):
    values, own = fd.prepare(x, distance=distance)
    return fd.Frames(fd.equal_frames(values), values, own)


def distances(x, y, distance):
    both = np.concatenate([x, y])
    whole = tile(both, distance)
    one, other = (fd.Frames(*(a[s] for a in whole)) for s in (slice(len(x)), slice(len(x), None)))
    return np.asarray(jax.jit(fd.between, static_argnums=2)(one, other, distance))


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 33)).astype(np.float32), rng.normal(size=(9, 33)).astype(np.float32)


def test_angular(numbers):
    x, y = (a.astype(float) for a in numbers)
    cosines = (x @ y.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    found = distances(*numbers, "angular")
    np.testing.assert_allclose(found, np.arccos(cosines) / np.pi, atol=3e-7)
    opposite = distances(numbers[0][:1], -numbers[0][:1], "angular")
    assert opposite == pytest.approx(1.0, abs=3e-4) and np.isfinite(opposite).all()


def test_angles_near_nothing():
    rng = np.random.default_rng(1)
    x, turn = rng.normal(size=(2, 1, 768))
    turn -= x * (x * turn).sum() / (x * x).sum()
    turn *= np.linalg.norm(x) / np.linalg.norm(turn)
    for angle in (0.01, 0.03, 0.1):
        y = np.cos(angle) * x + np.sin(angle) * turn
        found = distances(x.astype(np.float32), y.astype(np.float32), "angular")
        assert found == pytest.approx(angle / np.pi, rel=0.02)


def test_euclidean(numbers):
    x, y = (a.astype(float) for a in numbers)
    exact = np.sqrt(((x[:, None] - y[None, :]) ** 2).sum(-1))
    np.testing.assert_allclose(distances(*numbers, "euclidean"), exact, rtol=1e-6)


def test_kl_symmetric(numbers):
    x, y = (np.exp(a.astype(float)) for a in numbers)
    x, y = (a / a.sum(1, keepdims=True) for a in (x, y))
    p, q = x[:, None], y[None, :]
    exact = 0.5 * ((p - q) * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum(-1)
    np.testing.assert_allclose(distances(x, y, "kl_symmetric"), exact, atol=1e-6)


@pytest.mark.parametrize("distance", ["angular", "euclidean", "kl_symmetric"])
def test_equal_frames_are_at_distance_zero(numbers, distance):
    x = np.abs(numbers[0])
    x /= x.sum(1, keepdims=True)
    found = distances(x, x, distance)
    assert (np.diag(found) == 0).all() and (found + np.eye(len(x)) > 0).all()


def test_frames_of_zeros_are_those_of_equal_numbers():
    x = np.array([[0.0, 0, 0], [2, 2, 2], [1, 0, 0]], np.float32)
    found = distances(x, x, "angular")
    assert found[0, 0] == 0
    assert found[0, 1] == pytest.approx(0, abs=4e-4)
    assert found[0, 2] == pytest.approx(np.arccos(1 / np.sqrt(3)) / np.pi, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-200, 1e200])
def test_the_size_of_frames_does_not_matter(numbers, scale):
    x, y = (a.astype(float) for a in numbers)
    expected = distances(x, y, "angular")
    np.testing.assert_allclose(distances(x * scale, y, "angular"), expected, atol=1e-6)


def test_units_are_equal_or_not():
    units = np.array([3, 1, 3], np.int32)
    frames = fd.Frames(units, np.zeros((3, 0), np.float32), np.zeros(3, np.float32))
    found = np.asarray(fd.between(frames, frames, "identical"))
    np.testing.assert_array_equal(found, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("x", [[[0.5, 0.6]], [[-0.5, 1.5]], [[0.0, 0.0]]])
def test_probabilities_are_checked(x):
    with pytest.raises(ValueError, match="expected probabilities"):
        fd.prepare(np.asarray(x), distance="kl_symmetric")


def test_numbers_of_equal_frames():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 64)).astype(np.float32)
    x[[10, 20, 30]] = x[3]
    x[40] = x[3]
    x[40, 1] += 1  # differs in a column that is not looked at first
    x[45] = x[3][::-1]
    expected = np.arange(50)
    expected[[10, 20, 30]] = 3
    np.testing.assert_array_equal(fd.equal_frames(x), expected)
