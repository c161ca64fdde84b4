"""Codebooks against float64 distances and a slow loop over frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dinosr_jax.config import parse, published_recipe
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.codebook import Codebook
from dinosr_jax.objective.loss import prediction_loss
from dinosr_jax.training import sharding

N, B, T, D, V = 2, 8, 15, 6, 12
assign = jax.jit(codebooks.assign)


@jax.jit
def update(codebook, targets, codes, mask, decay):
    size = codebook.counts.shape[-1]
    found = codebooks.statistics(targets, codes, mask, codebook_size=size)
    return codebooks.update(codebook, found, decay=decay)


def example(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    counts = rng.uniform(0.2, 5.0, size=(N, V)).astype(np.float32)
    codebook = Codebook(jnp.asarray(normal(N, V, D)), jnp.asarray(counts))
    return codebook, jnp.asarray(normal(N, B, T, D)), jnp.asarray(rng.random((B, T)) < 0.4)


def test_init_is_standardised_noise():
    settings = {"num_codebooks": 3, "codebook_size": 64, "width": 5}
    init = jax.jit(functools.partial(codebooks.init, **settings))
    codebook = init(jax.random.key(0))
    sums = np.asarray(codebook.sums, np.float64)
    assert codebook.sums.shape == (3, 64, 5) and codebook.counts.shape == (3, 64)
    assert codebook.sums.dtype == codebook.counts.dtype == jnp.float32
    np.testing.assert_allclose(sums.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(sums.std(axis=1), 1, atol=3e-5)  # 1e-5 is added to the variance
    np.testing.assert_array_equal(codebook.counts, 1)
    assert np.abs(sums[0] - sums[1]).max() > 1
    again, other = init(jax.random.key(0)), init(jax.random.key(1))
    np.testing.assert_array_equal(codebook.sums, again.sums)
    assert np.abs(codebook.sums - other.sums).max() > 1


def test_small_first_codewords_share_the_frames_out():
    """Frames of few directions, as a network's are: of published ones many never get a frame."""
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(1, 8, 400, 6)) @ rng.normal(size=(6, 64))
    frames = jnp.asarray((frames - frames.mean()) / frames.std(), jnp.float32)
    mask = jnp.ones((8, 400), bool)
    used = {}
    for scale in (1.0, 0.1, 0.01):
        settings = {"num_codebooks": 1, "codebook_size": 64, "width": 64, "scale": scale}
        codebook = codebooks.init(jax.random.key(0), **settings)
        np.testing.assert_allclose(codebook.sums[0].std(axis=0), scale, rtol=3e-5)
        for _ in range(20):
            codes = assign(codebook, frames)
            codebook = update(codebook, frames, codes, mask, 0.9)
        used[scale] = len(np.unique(codes))
    assert used[1.0] < 40 and used[0.1] > 55 and used[0.01] > 55, used


def test_codewords_are_means():
    codebook, _, _ = example()
    expected = np.float64(codebook.sums) / np.float64(codebook.counts)[..., None]
    np.testing.assert_allclose(codebooks.codewords(codebook), expected, rtol=1e-6)


def test_assign_finds_the_nearest_codeword():
    codebook, targets, _ = example()
    words = np.float64(codebook.sums) / np.float64(codebook.counts)[..., None]
    difference = np.float64(targets)[:, :, :, None, :] - words[:, None, None, :, :]
    distances = (difference**2).sum(axis=-1)  # [N, B, T, V]
    codes = assign(codebook, targets)
    assert codes.shape == (N, B, T) and codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, distances.argmin(axis=-1))
    assert len(np.unique(codes)) > V // 2
    # the nearest codeword, and not the one of the largest product
    products = np.einsum("nbtd,nvd->nbtv", targets, words).argmax(axis=-1)
    assert (np.asarray(codes) != products).mean() > 0.2


def test_update_is_the_loop_over_masked_frames():
    codebook, targets, mask = example()
    codes = assign(codebook, targets)
    codes = jnp.where(codes == 3, 4, codes)  # codeword 3 gets no frame at all
    only_unmasked = np.zeros((N, B, T), bool)
    only_unmasked[0] = ~np.asarray(mask)
    codes = jnp.where(only_unmasked & (codes == 4), 5, codes)
    new = update(codebook, targets, codes, mask, decay=0.9)
    mask, codes, targets = np.asarray(mask), np.asarray(codes), np.float64(targets)
    codebook, new = jax.device_get((codebook, new))
    for n in range(N):
        for v in range(V):
            count, total = 0, np.zeros(D)
            for b in range(B):
                for t in range(T):
                    if mask[b, t] and codes[n, b, t] == v:
                        count += 1
                        total += targets[n, b, t]
            if count == 0:
                np.testing.assert_array_equal(new.sums[n, v], codebook.sums[n, v])
                np.testing.assert_array_equal(new.counts[n, v], codebook.counts[n, v])
                continue
            sums = 0.9 * np.float64(codebook.sums[n, v]) + 0.1 * total
            counts = 0.9 * np.float64(codebook.counts[n, v]) + 0.1 * count
            np.testing.assert_allclose(new.sums[n, v], sums, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(new.counts[n, v], counts, rtol=1e-6)
    np.testing.assert_array_equal(new.sums[:, 3], codebook.sums[:, 3])
    assert new.sums.dtype == new.counts.dtype == jnp.float32


def test_unmasked_frames_do_not_count():
    codebook, targets, mask = example()
    codes = assign(codebook, targets)
    noisy = jnp.where(mask[None, :, :, None], targets, 100.0 + targets)
    found = update(codebook, targets, codes, mask, decay=0.9)
    other = update(codebook, noisy, codes, mask, decay=0.9)
    np.testing.assert_array_equal(found.sums, other.sums)
    nothing = update(codebook, targets, codes, jnp.zeros_like(mask), decay=0.9)
    np.testing.assert_array_equal(nothing.sums, codebook.sums)
    np.testing.assert_array_equal(nothing.counts, codebook.counts)


def test_repeated_updates_reach_the_mean():
    codebook, targets, _ = example()
    codes, mask = jnp.zeros((N, B, T), jnp.int32), jnp.ones((B, T), bool)
    for _ in range(200):
        codebook = update(codebook, targets, codes, mask, decay=0.9)
    np.testing.assert_allclose(codebook.counts[:, 0], B * T, rtol=1e-5)
    mean = np.float64(targets).mean(axis=(1, 2))
    np.testing.assert_allclose(codebooks.codewords(codebook)[:, 0], mean, atol=1e-5)


def test_eight_devices_are_one():
    mesh = sharding.make_mesh(parse(published_recipe()))
    codebook, targets, mask = example()
    second = NamedSharding(mesh, PartitionSpec(None, "data"))  # B of [N, B, T, D]
    whole = sharding.replicated(mesh)

    def step(codebook, targets, mask):
        codes = codebooks.assign(codebook, targets)
        return codes, update(codebook, targets, codes, mask, decay=0.9)

    shardings = (whole, second, sharding.batch_sharding(mesh))
    on_mesh = jax.jit(step, in_shardings=shardings, out_shardings=(second, whole))
    codes, new = on_mesh(codebook, targets, mask)
    assert {shard.data.shape for shard in codes.addressable_shards} == {(N, 1, T)}
    for leaf in new:
        assert len(leaf.sharding.device_set) == 8 and leaf.sharding.is_fully_replicated
    expected_codes, expected = jax.jit(step)(codebook, targets, mask)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_allclose(new.sums, expected.sums, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(new.counts, expected.counts, rtol=1e-6)


def test_no_gradient_reaches_the_codebook():
    codebook, targets, mask = example()
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(N, B, T, V)), jnp.float32)

    def loss(codebook, targets, logits):
        codes = codebooks.assign(codebook, targets)
        return jnp.mean(prediction_loss(logits, codes, mask))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(codebook, targets, logits)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[:2]))
    assert np.any(gradients[2])


@pytest.mark.parametrize(
    ("number", "expected"), [(0, 0.9), (1, 0.9009), (50, 0.945), (100, 0.99), (101, 0.99)]
)
def test_decay_rises_linearly(number, expected):
    decay = codebooks.decay_at(jnp.asarray(number), start=0.9, end=0.99, steps=100)
    np.testing.assert_allclose(decay, expected, rtol=1e-6)


def test_decay_without_a_schedule_is_constant():
    for number in (1, 100_000):
        decay = codebooks.decay_at(jnp.asarray(number), start=0.9, end=0.5, steps=0)
        np.testing.assert_allclose(decay, 0.9, rtol=1e-6)


@pytest.mark.parametrize("num_frames", [B * T, V - 3])
def test_codewords_that_are_frames(num_frames):
    """Each is another real frame, the same one in all codebooks; the rest stay as they are."""
    codebook, targets, _ = example()
    padding = jnp.arange(B * T).reshape(B, T) >= num_frames
    first = jax.jit(codebooks.from_frames)(jax.random.key(0), codebook, targets, padding)
    np.testing.assert_array_equal(first.counts, 1)
    drawn = min(V, num_frames)
    np.testing.assert_array_equal(first.sums[:, drawn:], codebook.sums[:, drawn:])
    frames = np.asarray(targets).reshape(N, -1, D)[:, :num_frames]
    same = (np.asarray(first.sums)[:, :drawn, None] == frames[:, None]).all(-1)  # [N, V, frames]
    assert (same.sum(-1) == 1).all() and (same.sum(1) <= 1).all()
    np.testing.assert_array_equal(same[0], same[1])
    other = codebooks.from_frames(jax.random.key(1), codebook, targets, None)
    assert not np.array_equal(other.sums, first.sums)


def test_a_batch_of_fewer_frames_than_codewords():
    codebook, targets, _ = example()
    few = targets[:, :1, : V - 4]
    first = codebooks.from_frames(jax.random.key(0), codebook, few, None)
    assert sorted(np.asarray(first.sums[0, : V - 4, 0])) == sorted(np.asarray(few[0, 0, :, 0]))
    np.testing.assert_array_equal(first.sums[:, V - 4 :], codebook.sums[:, V - 4 :])


def test_clustering_that_starts_from_frames_is_as_good_as_k_means():
    """A mixture of 24 clouds of very unequal spread: the distance left, after 60 small batches."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(24, 16)) * rng.uniform(0.2, 2.0, size=16)
    draw = lambda: (
        centres[rng.integers(24, size=(1, 4, 50))] + 0.2 * rng.normal(size=(1, 4, 50, 16))
    ).astype(np.float32)
    settings = {"num_codebooks": 1, "codebook_size": 24, "width": 16}
    noise = codebooks.init(jax.random.key(0), **settings)
    start = {
        "noise": noise,
        "frames": codebooks.from_frames(jax.random.key(1), noise, draw(), None),
    }
    mask, left, used = jnp.ones((4, 50), bool), {}, {}
    batches, test = [draw() for _ in range(60)], draw()
    for name, codebook in start.items():
        for batch in batches:
            codebook = update(codebook, batch, assign(codebook, batch), mask, 0.9)
        codes = np.asarray(assign(codebook, test))[0]
        words = np.asarray(codebooks.codewords(codebook))[0]
        left[name] = np.square(test[0] - words[codes]).sum(-1).mean()
        used[name] = len(np.unique(codes))
    assert left["frames"] < 0.75 * left["noise"] and used["frames"] > used["noise"], (left, used)
