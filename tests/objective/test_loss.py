"""The prediction loss against NumPy in float64, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dinosr_jax.config import parse, published_recipe
from dinosr_jax.objective.loss import masked_mean, prediction_loss
from dinosr_jax.training import sharding

N, B, T, V = 3, 8, 11, 7
loss_of = jax.jit(prediction_loss)


def example(scale=3.0):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(N, B, T, V))).astype(np.float32)
    codes = rng.integers(V, size=(N, B, T)).astype(np.int32)
    mask = rng.random((B, T)) < np.linspace(0.1, 0.9, B)[:, None]  # unequal utterances
    return logits, codes, mask


def numpy_losses(logits, codes):
    """Cross-entropy of every frame, [N, B, T]."""
    x = np.float64(logits)
    top = x.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(x - top).sum(axis=-1)) + top[..., 0]
    return log_sum - np.take_along_axis(x, codes[..., None], axis=-1)[..., 0]


def test_loss_is_the_mean_over_masked_frames():
    logits, codes, mask = example()
    expected = numpy_losses(logits, codes)[:, mask].mean(axis=1)
    found = loss_of(logits, codes, mask)
    assert found.shape == (N,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_unmasked_frames_do_not_count():
    logits, codes, mask = example()
    other = np.where(mask[None, :, :, None], logits, np.nan).astype(np.float32)
    np.testing.assert_array_equal(loss_of(logits, codes, mask), loss_of(other, codes, mask))


def test_large_logits_are_finite():
    logits, codes, mask = example(scale=1e4)
    expected = numpy_losses(logits, codes)[:, mask].mean(axis=1)
    np.testing.assert_allclose(loss_of(logits, codes, mask), expected, rtol=1e-5)


def test_uniform_and_certain_predictions():
    _, codes, mask = example()
    uniform = loss_of(np.zeros((N, B, T, V), np.float32), codes, mask)
    np.testing.assert_allclose(uniform, np.log(V), rtol=1e-6)
    certain = 100 * np.eye(V, dtype=np.float32)[codes]
    np.testing.assert_allclose(loss_of(certain, codes, mask), 0, atol=1e-6)


def test_empty_mask_gives_zero():
    logits, codes, mask = example()
    np.testing.assert_array_equal(loss_of(logits, codes, np.zeros_like(mask)), 0)


def test_masked_mean():
    values = jnp.arange(12.0).reshape(2, 2, 3)
    mask = jnp.array([[True, False, False], [False, True, True]])
    np.testing.assert_allclose(masked_mean(values, mask), [(0 + 4 + 5) / 3, (6 + 10 + 11) / 3])


def test_mean_is_global_and_not_a_mean_of_devices():
    logits, codes, mask = example()
    losses = numpy_losses(logits, codes)
    whole = losses[:, mask].mean(axis=1)
    per_device = np.stack([losses[:, b, mask[b]].mean(axis=1) for b in range(B)]).mean(axis=0)
    assert np.abs(whole - per_device).min() > 0.01  # the example tells them apart
    mesh = sharding.make_mesh(parse(published_recipe()))
    second = NamedSharding(mesh, PartitionSpec(None, "data"))
    cut = (second, second, sharding.batch_sharding(mesh))
    arguments = jax.device_put((logits, codes, mask), cut)
    assert {shard.data.shape for shard in arguments[0].addressable_shards} == {(N, 1, T, V)}
    on_mesh = jax.jit(prediction_loss, in_shardings=cut, out_shardings=sharding.replicated(mesh))
    found = on_mesh(*arguments)
    assert len(found.sharding.device_set) == 8 and found.sharding.is_fully_replicated
    np.testing.assert_allclose(found, whole, rtol=1e-6)
