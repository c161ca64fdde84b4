"""The whole network: its size, its parts, padding, masking and precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.config import parse, published_recipe
from dinosr_jax.model.dinosr import padding_mask
from dinosr_jax.model.feature_encoder import num_frames
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import Batch, init_state, make_model
from dinosr_jax.training.step import apply, teacher_targets
from tests.random_states import random_params
from tests.tiny_runs import tiny_config

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def params():
    model = make_model(tiny_config())
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 400)))["params"]
    return random_params(shapes, scale=0.2)


def noise(*, size=2, samples=4000, seed=0):
    return np.random.default_rng(seed).normal(size=(size, samples)).astype(np.float32)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_conftest_is_strict():
    assert jax.config.jax_numpy_rank_promotion == "raise"
    assert jax.device_count() == 8 and jax.default_backend() == "cpu"


@pytest.mark.parametrize(("scope", "front_end"), [("encoder", False), ("full", True)])
def test_parameters_of_the_base_network(scope, front_end):
    config = published_recipe()
    config.teacher.scope = scope
    config = parse(config)
    state = jax.eval_shape(lambda: init_state(config, optimizer=make_optimizer(config)))
    sizes = {part: count(tree) for part, tree in state.params.items()}
    heads = sizes.pop("heads")
    assert heads == 8 * (768 + 1) * 256 == 1_574_912
    assert sum(sizes.values()) == 93_164_288
    assert sizes["encoder"] == 88_561_920
    front = sizes["feature_encoder"] + sizes["feature_projection"]
    assert count(state.teacher_params) == 88_561_920 + front * front_end
    assert count(state.codebook) == 8 * 256 * (768 + 1) == 1_574_912
    for leaf in jax.tree.leaves((state.params, state.teacher_params, state.codebook)):
        assert leaf.dtype == jnp.float32


def test_outputs_of_the_base_network():
    model = make_model(parse(published_recipe()))
    waveforms = jax.ShapeDtypeStruct((2, 16_000), jnp.float32)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), waveforms)
    assert logits.shape == (8, 2, 49, 256) and logits.dtype == jnp.float32


def test_mask_embedding_replaces_the_masked_frames(params):
    model = make_model(tiny_config())
    mask = np.zeros((2, 11), bool)
    mask[0, 3:6] = True
    projected = np.random.default_rng(1).normal(size=(2, 11, 32)).astype(np.float32)
    encode = jax.jit(lambda x, mask: apply(model, params, x, mask=mask, method="encode").output)
    replaced = np.where(mask[..., None], params["mask_embedding"]["embedding"], projected)
    found = encode(projected, mask)
    np.testing.assert_allclose(found, encode(replaced, np.zeros_like(mask)), atol=1e-6)
    # what was there before the mask is gone
    other = np.where(mask[..., None], 9.0, projected).astype(np.float32)
    np.testing.assert_array_equal(found, encode(other, mask))


def test_heads_are_independent_linear_maps(params):
    model = make_model(tiny_config())
    x = np.random.default_rng(1).normal(size=(2, 5, 32)).astype(np.float32)
    logits = jax.jit(lambda x: apply(model, params, x, method="predict"))(x)
    kernel, bias = (np.float64(params["heads"][name]) for name in ("kernel", "bias"))
    for n in range(2):
        np.testing.assert_allclose(logits[n], np.float64(x) @ kernel[n] + bias[n], atol=1e-5)


def test_padding_mask():
    layers = tiny_config().model.conv_layers
    num_samples = np.array([4000, 2000, 400, 399, 0])
    found = padding_mask(jnp.asarray(num_samples), samples=4000, conv_layers=layers)
    frames = [num_frames(int(n), layers) for n in num_samples]
    assert frames == [12, 6, 1, 0, 0] and found.dtype == bool and found.shape == (5, 12)
    np.testing.assert_array_equal((~found).sum(axis=1), frames)
    np.testing.assert_array_equal(found, np.sort(found, axis=1))  # real frames come first


def run(params, waveforms, num_samples=None):
    """ffn and block of every layer, [2, L, B, T, D]."""
    config = tiny_config()
    model, layers = make_model(config), config.model.conv_layers

    @jax.jit
    def features(waveforms, num_samples):
        padded = None
        if num_samples is not None:
            samples = waveforms.shape[1]
            padded = padding_mask(num_samples, samples=samples, conv_layers=layers)
        projected = apply(model, params, waveforms, method="project")
        kwargs = {"padding_mask": padded, "all_layers": True, "method": "encode"}
        found = apply(model, params, projected, **kwargs)
        return jnp.stack([found.ffn, found.block])

    return np.asarray(features(waveforms, num_samples))


def test_an_utterance_does_not_depend_on_what_it_is_batched_with(params):
    waveforms, short = noise(), 2345
    alone = run(params, waveforms[1:, :short])[:, :, 0]
    waveforms[1, short:] = 5.0
    padded = run(params, waveforms, np.array([4000, short], np.int32))[:, :, 1]
    assert alone.shape == (2, 3, 7, 32) and np.std(alone) > 0.1
    np.testing.assert_allclose(padded[:, :, :7], alone, rtol=0, atol=1e-5)


def test_bfloat16_computes_near_float32(params):
    batch = Batch(jnp.asarray(noise()))
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = tiny_config(compute_dtype=dtype)
        model = make_model(config)
        teacher = {"encoder": params["encoder"]}

        @jax.jit
        def outputs(params, teacher, batch, model=model, config=config):
            projected = apply(model, params, batch.waveforms, method="project")
            targets = teacher_targets(config, model, teacher, projected, batch)
            hidden = apply(model, params, projected, method="encode").output
            return projected, hidden, targets, apply(model, params, hidden, method="predict")

        projected, hidden, targets, logits = outputs(params, teacher, batch)
        assert projected.dtype == hidden.dtype == jnp.dtype(dtype)
        assert targets.dtype == logits.dtype == jnp.float32
        assert targets.shape == (2, 2, 12, 32) and logits.shape == (2, 2, 12, 16)
        found[dtype] = {"targets": np.asarray(targets), "logits": np.asarray(logits)}
    for name, exact in found["float32"].items():
        half = found["bfloat16"][name]
        assert np.isfinite(half).all()
        difference = np.abs(half - exact).mean() / exact.std()
        assert 1e-4 < difference < 0.05, (name, difference)
