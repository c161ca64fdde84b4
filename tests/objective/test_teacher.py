"""The teacher's schedule, its average and the normalisation of its targets."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.objective.teacher import (
    ema_decay,
    exponential_ema_decay,
    instance_normalise,
    teacher_parts,
    update_teacher,
)

normalise = jax.jit(instance_normalise)
move = jax.jit(
    lambda teacher, student, decay, scope: update_teacher(
        teacher, student, decay=decay, scope=scope
    ),
    static_argnums=3,
)


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (1, 0.999 + 0.0009 / 30_000),
        (15_000, 0.99945),
        (29_999, 0.9999 - 0.0009 / 30_000),
        (30_000, 0.9999),
        (30_001, 0.9999),
        (200_000, 0.9999),
        (200_001, 1.0),
        (400_000, 1.0),
    ],
)
def test_decay_of_the_paper(update, expected):
    schedule = {"start": 0.999, "end": 0.9999, "steps": 30_000, "freeze_step": 200_001}
    found = ema_decay(jnp.asarray(update), **schedule)
    assert found.dtype == jnp.float32 and found.shape == ()
    # one update of the schedule is 3e-8, float32 near 1 is 6e-8 apart
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-8)


@pytest.mark.parametrize("update", [1, 100, 20_000, 100_000, 184_206, 184_207, 184_208, 400_000])
def test_decay_of_spidr_comes_closer_to_1_and_reaches_it(update):
    schedule = {"start": 0.999, "timescale": 20_000, "freeze_step": 10**9}
    found = exponential_ema_decay(jnp.asarray(update), **schedule)
    assert found.dtype == jnp.float32 and found.shape == ()
    change = (1 - 0.999) * math.exp(-update / 20_000)
    assert (change <= 1e-7) == (update > 184_206)
    expected = 1.0 if update > 184_206 else 1 - change
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-8)
    frozen = exponential_ema_decay(jnp.asarray(update), **schedule | {"freeze_step": update})
    assert frozen == 1.0


def test_decay_without_a_schedule_is_its_end():
    schedule = {"start": 0.9, "end": 0.99, "steps": 0, "freeze_step": 5}
    found = [ema_decay(jnp.asarray(u), **schedule) for u in (1, 4, 5)]
    np.testing.assert_allclose(found, [0.99, 0.99, 1.0], rtol=1e-6)


def tree(seed):
    rng = np.random.default_rng(seed)
    array = lambda *shape: rng.normal(size=shape).astype(np.float32)
    layers = {"ffn_in": {"kernel": array(3, 4, 5)}, "ffn_layer_norm": {"scale": array(3, 4)}}
    return {
        "encoder": {
            "pos_conv": {"kernel": array(2, 3, 4), "bias": array(2, 4)},
            "layer_norm": {"scale": array(4)},
            "layers": layers,
        }
    }


@pytest.mark.parametrize("scope", ["encoder", "full"])
def test_teacher_is_averaged_and_in_scope_encoder_its_positional_convolution_copied(scope):
    teacher, student = tree(0), tree(1)
    new = jax.device_get(move(teacher, student, 0.9, scope))
    average = lambda t, s: 0.9 * np.float64(t) + 0.1 * np.float64(s)
    expected = jax.tree.map(average, teacher, student)
    if scope == "encoder":
        expected["encoder"]["pos_conv"] = student["encoder"]["pos_conv"]
    assert jax.tree.structure(new) == jax.tree.structure(teacher)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(new), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=name)
        assert scope == "full" or "pos_conv" not in name or np.array_equal(a, b)


@pytest.mark.parametrize("scope", ["encoder", "full"])
def test_frozen_teacher_does_not_move_by_a_bit(scope):
    teacher, student = tree(0), tree(1)
    student["encoder"]["layer_norm"]["scale"][0] = np.inf  # 0 * inf would be NaN
    new = jax.device_get(move(teacher, student, 1.0, scope))
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(teacher), strict=True):
        np.testing.assert_array_equal(a, b)


def test_teacher_parts():
    names = ("feature_encoder", "feature_projection", "mask_embedding", "encoder", "heads")
    params = {name: {"kernel": np.ones(2)} for name in names}
    assert teacher_parts(params, scope="encoder") == {"encoder": params["encoder"]}
    full = teacher_parts(params, scope="full")
    assert set(full) == {"feature_encoder", "feature_projection", "encoder"}
    assert all(full[name] is params[name] for name in full)


def values(shape=(2, 3, 17, 5)):
    rng = np.random.default_rng(0)
    # channels of very different mean and spread; one is nearly constant, which shows eps
    spread = np.array([1e-3, 0.1, 1.0, 5.0, 30.0])
    return (rng.normal(size=shape) * spread + [0.0, 1.0, -2.0, 10.0, 50.0]).astype(np.float32)


def numpy_normalise(z):
    z = np.float64(z)  # [T, D]
    return (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5)


def test_normalisation_is_per_utterance_and_channel():
    z = values()
    found = normalise(z)
    assert found.shape == z.shape and found.dtype == jnp.float32
    for n in range(2):
        for b in range(3):
            np.testing.assert_allclose(found[n, b], numpy_normalise(z[n, b]), atol=2e-5)


def test_padding_does_not_count():
    z, lengths = values(), np.array([17, 9, 12])
    padding = np.arange(17)[None, :] >= lengths[:, None]
    noisy = np.where(padding[None, :, :, None], 1e3, z).astype(np.float32)
    found = normalise(noisy, padding)
    np.testing.assert_array_equal(found, normalise(z, padding))
    for n in range(2):
        for b, length in enumerate(lengths):
            expected = numpy_normalise(z[n, b, :length])
            np.testing.assert_allclose(found[n, b, :length], expected, atol=2e-5)
            np.testing.assert_array_equal(found[n, b, length:], 0)


def test_no_padding_is_the_same_as_an_empty_padding_mask():
    z = values()
    np.testing.assert_allclose(normalise(z), normalise(z, np.zeros((3, 17), bool)), atol=1e-6)


def test_bfloat16_is_normalised_in_float32():
    z = jnp.asarray(values()[..., 1:], jnp.bfloat16)
    found = normalise(z)
    assert found.dtype == jnp.float32
    expected = [numpy_normalise(np.asarray(z[0, b], np.float64)) for b in range(3)]
    np.testing.assert_allclose(found[0], expected, atol=2e-5)
