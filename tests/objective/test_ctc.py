"""CTC against the sum over all paths, in plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.objective.ctc import best_path, ctc_loss


def collapse(path):
    return tuple(s for s, _ in itertools.groupby(path) if s != 0)


def brute_force(logits, labels):
    """-log of the summed probability of every path that collapses to the labels."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    frames, size = p.shape
    total = sum(
        np.prod([p[t, s] for t, s in enumerate(path)])
        for path in itertools.product(range(size), repeat=frames)
        if collapse(path) == tuple(labels)
    )
    return -np.log(total)


@pytest.mark.parametrize("labels", [[1], [1, 1], [2, 1, 2], [1, 2, 2]])
def test_loss_is_that_of_all_paths(labels):
    logits = np.random.default_rng(len(labels)).normal(size=(5, 3)).astype(np.float32)
    padded = np.pad(labels, (0, 4 - len(labels)), constant_values=2)  # anything after the end
    found = ctc_loss(jnp.asarray(logits)[None], None, padded[None], jnp.array([len(labels)]))
    assert float(found[0]) == pytest.approx(brute_force(logits, labels), abs=1e-5)


def test_padding_changes_nothing():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 9, 4)).astype(np.float32)
    lengths, labels = [9, 6], np.array([[1, 2, 3], [3, 3, 0]])
    padded = np.arange(9)[None] >= np.array(lengths)[:, None]
    found = ctc_loss(jnp.asarray(logits), jnp.asarray(padded), labels, jnp.array([3, 2]))
    for row, number in enumerate([3, 2]):
        own = logits[row, : lengths[row]]
        assert float(found[row]) == pytest.approx(brute_force(own, labels[row, :number]), abs=1e-4)


def test_more_labels_than_frames_cost_nothing():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 3)), jnp.float32)
    labels, numbers = jnp.array([[1, 1, 1]]), jnp.array([3])  # needs 5 frames
    of = lambda x: ctc_loss(x, None, labels, numbers)[0]
    assert float(of(logits)) == 0 and not np.any(jax.grad(of)(logits))
    assert float(ctc_loss(logits, None, labels, jnp.array([2]))[0]) > 0


def test_best_path():
    assert best_path(np.array([0, 1, 1, 0, 1, 2, 2, 0])).tolist() == [1, 1, 2]
    assert best_path(np.array([], int)).tolist() == []
    assert best_path(np.array([0, 0])).tolist() == []
