"""Layers of the transformer: scan, dropout, LayerDrop and padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from dinosr_jax.model import layers
from dinosr_jax.model.transformer import PositionalConvolution, TransformerEncoder
from tests.random_states import random_params

L, B, T, D = 3, 2, 14, 8
NONE = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}


pytestmark = pytest.mark.usefixtures("compile_quickly")


def encoder(**changes):
    fields = {
        "num_layers": L,
        "num_heads": 2,
        "ffn_dim": 16,
        "pos_conv_depth": 3,
        "pos_conv_kernel": 5,
        "pos_conv_groups": 2,
        "padding_mode": "zero",
        "scan_layers": True,
    }
    return TransformerEncoder(**(fields | NONE | changes))


@functools.cache
def runner(network, all_layers=True):
    run = lambda p, x, padding, key: network.apply(
        {"params": p}, x, padding, key=key, all_layers=all_layers
    )
    return jax.jit(run)


def run(network, params, x, padding=None, key=None):
    return runner(network)(params, x, padding, key)


@pytest.fixture(scope="module")
def params():
    shape = jax.ShapeDtypeStruct((1, T, D), jnp.float32)
    init = lambda key, x: encoder().init(key, x, None)["params"]
    return random_params(jax.eval_shape(init, jax.random.key(0), shape), scale=0.5)


def inputs(seed=1, size=B, frames=T):
    normal = np.random.default_rng(seed).normal(size=(size, frames, D))
    return jnp.asarray(normal, jnp.float32)


def numpy_encoder(x, params):
    """Post-LN encoder in float64, one utterance x [T, D]; -> input, ffn [L], block [L]."""
    p = jax.tree.map(np.float64, params)

    def norm(y, affine=None):
        y = y - y.mean(axis=-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(axis=-1, keepdims=True) + 1e-5)
        return y if affine is None else y * affine["scale"] + affine["bias"]

    gelu = lambda y: 0.5 * y * (1 + erf(y / np.sqrt(2)))
    linear = lambda y, q: y @ q["kernel"] + q["bias"]
    y, x = np.float64(x), np.float64(x)
    for kernel, bias in zip(p["pos_conv"]["kernel"], p["pos_conv"]["bias"], strict=True):
        around, z = np.pad(y, ((2, 2), (0, 0))), np.zeros_like(y)
        for t in range(len(y)):
            for g in (slice(0, 4), slice(4, 8)):
                z[t, g] = np.einsum("kc,kcd->d", around[t : t + 5, g], kernel[:, :, g])
        y = gelu(norm(z + bias))
    x = norm(x + y, p["layer_norm"])
    first, ffns, blocks = x, [], []
    for i in range(L):
        q = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
        parts = []
        for head in (slice(0, 4), slice(4, 8)):
            a, b, c = (linear(x, q["attention"][n])[:, head] for n in ("query", "key", "value"))
            weights = np.exp(a @ b.T / 2)
            parts.append(weights / weights.sum(axis=1, keepdims=True) @ c)
        attention = linear(np.concatenate(parts, axis=1), q["attention"]["output"])
        x = norm(x + attention, q["attention_layer_norm"])
        ffn = linear(gelu(linear(x, q["ffn_in"])), q["ffn_out"])
        x = norm(x + ffn, q["ffn_layer_norm"])
        ffns.append(ffn)
        blocks.append(x)
    return first, np.stack(ffns), np.stack(blocks)


def test_layers_are_those_of_numpy(params):
    x = inputs()
    found = run(encoder(), params, x)
    for b in range(B):
        first, ffn, block = numpy_encoder(x[b], params)
        np.testing.assert_allclose(found.input[b], first, atol=1e-5)
        np.testing.assert_allclose(found.ffn[:, b], ffn, atol=2e-5)
        np.testing.assert_allclose(found.block[:, b], block, atol=2e-5)
    np.testing.assert_array_equal(found.output, found.block[-1])


def test_scanned_and_unrolled_layers_agree(params):
    key = jax.random.key(3)
    rates = {"dropout": 0.2, "layerdrop": 0.4}
    scanned = run(encoder(**rates), params, inputs(), key=key)
    unrolled = run(encoder(**rates, scan_layers=False), params, inputs(), key=key)
    for a, b in zip(scanned, unrolled, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_anew_is_the_same(params, remat):
    key, rates = jax.random.key(3), {"dropout": 0.2, "attention_dropout": 0.2, "layerdrop": 0.4}

    def gradients(kind):
        loss = lambda p, x: jnp.sum(run(encoder(**rates, remat=kind), p, x, key=key).output[..., 0])
        return jax.grad(loss, (0, 1))(params, inputs())

    kept, anew = gradients("none"), gradients(remat)
    assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(kept))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(anew), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_layers_are_left_out_unless_asked_for(params):
    found = runner(encoder(), all_layers=False)(params, inputs(), None, None)
    assert found.ffn is None and found.block is None
    np.testing.assert_allclose(found.output, run(encoder(), params, inputs()).output, atol=1e-6)


def test_evaluation_has_no_dropout(params):
    rates = {"dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5, "layerdrop": 0.5}
    plain = run(encoder(), params, inputs())
    for a, b in zip(run(encoder(**rates), params, inputs()), plain, strict=True):
        np.testing.assert_array_equal(a, b)
    # a key without a rate changes nothing either
    for a, b in zip(run(encoder(), params, inputs(), key=jax.random.key(0)), plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout"])
def test_every_dropout_is_switched_on_by_its_rate(params, name):
    x = inputs()
    network = encoder(**{name: 0.3})
    found = [run(network, params, x, key=jax.random.key(k)).output for k in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.01
    assert np.abs(found[0] - run(encoder(), params, x).output).max() > 0.01


@pytest.mark.parametrize("width", [100, 7])
def test_dropout_keeps_the_mean(width):
    x = jnp.full((20_000 // width, width), 3.0)
    y = np.asarray(layers.dropout(x, rate=0.2, key=jax.random.key(0)))
    zero = y == 0
    assert y.shape == x.shape
    np.testing.assert_allclose(y[~zero], 3.0 / 0.8, rtol=2e-5)  # the rate may be rounded
    assert abs(zero.mean() - 0.2) < 5 * np.sqrt(0.16 / y.size)
    assert np.abs(zero.mean(axis=0) - 0.2).max() < 5 * np.sqrt(0.16 / len(y))
    # entries are dropped independently
    together = (zero.T.astype(float) @ zero) / len(y)
    pairs = together[~np.eye(width, dtype=bool)]
    assert abs(pairs.mean() - 0.04) < 0.005 and pairs.max() < 0.04 + 7 * np.sqrt(0.04 / len(y))
    assert layers.dropout(x, rate=0.2, key=None) is x


def test_layerdrop_of_everything_gives_the_input_of_the_layers(params):
    found = run(encoder(layerdrop=0.999), params, inputs(), key=jax.random.key(0))
    np.testing.assert_array_equal(found.output, found.input)
    np.testing.assert_array_equal(found.block, jnp.broadcast_to(found.input, found.block.shape))
    np.testing.assert_array_equal(found.ffn, 0)


def test_layerdrop_drops_its_share(params):
    x, keys = inputs(frames=3), jax.random.split(jax.random.key(5), 500)
    network = encoder(layerdrop=0.3)
    one = lambda key: network.apply({"params": params}, x, None, key=key, all_layers=True)
    found = jax.jit(jax.vmap(one))(keys)
    dropped = np.asarray((found.ffn == 0).all(axis=(2, 3, 4)))  # [keys, L]
    error = 5 * np.sqrt(0.21 / len(keys))
    np.testing.assert_allclose(dropped.mean(axis=0), 0.3, atol=error)
    # layers are dropped independently
    np.testing.assert_allclose((dropped[:, 0] & dropped[:, 1]).mean(), 0.09, atol=0.07)
    before = np.concatenate([np.asarray(found.input)[:, None], found.block[:, :-1]], axis=1)
    np.testing.assert_array_equal(np.asarray(found.block)[dropped], before[dropped])


def worst(params, padding_mode, *, short=9):
    """Largest difference between a padded utterance and itself alone, [ffn or block, L]."""
    x = np.array(inputs())
    padding = np.arange(T)[None, :] >= np.array([T, short])[:, None]
    x[padding] = 7.0
    together = run(encoder(padding_mode=padding_mode), params, x, padding)
    alone = run(encoder(), params, x[1:, :short])
    difference = []
    for name in ("ffn", "block"):
        a, b = getattr(together, name)[:, 1, :short], getattr(alone, name)[:, 0]
        assert a.shape == b.shape == (L, short, D)
        difference.append(np.abs(a - b).max(axis=(1, 2)))
    return np.stack(difference)


def test_features_do_not_depend_on_the_batch(params):
    assert worst(params, "zero").max() < 1e-5


def test_fairseqs_padding_leaks(params):
    assert worst(params, "fairseq").min() > 1e-2


def test_padding_modes_agree_without_padding(params):
    zero, fairseq = (run(encoder(padding_mode=m), params, inputs()) for m in ("zero", "fairseq"))
    for a, b in zip(zero, fairseq, strict=True):
        np.testing.assert_array_equal(a, b)


def test_softmax_and_layer_norm_are_computed_in_float32(params):
    x = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16)
    apply = lambda x: encoder().apply({"params": params}, x, None, all_layers=True)
    operations = str(jax.make_jaxpr(apply)(x)).splitlines()
    for name in ("exp", "rsqrt"):
        found = [line.strip() for line in operations if f" = {name}" in line]
        assert found and all(":f32[" in line.split(" = ")[0] for line in found), found
    found = run(encoder(), params, inputs().astype(jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 and np.isfinite(leaf).all() for leaf in found)


@pytest.mark.parametrize("kernel", [3, 4])
def test_positional_convolution_keeps_the_number_of_frames(kernel):
    network = PositionalConvolution(depth=2, kernel=kernel, groups=2)
    x = jax.ShapeDtypeStruct((1, 11, D), jnp.float32)
    y, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), x, None)
    assert y.shape == x.shape
    assert variables["params"]["kernel"].shape == (2, kernel, D // 2, D)


def test_init_of_the_layers():
    network = encoder(ffn_dim=256)
    init = jax.jit(lambda key: network.init(key, jnp.zeros((1, 2, D)), None)["params"]["layers"])
    found = init(jax.random.key(0))
    for kernel in (found["ffn_in"]["kernel"], found["ffn_out"]["kernel"]):
        np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.05)
        assert np.abs(kernel[0] - kernel[1]).max() > 0.02  # no two layers alike
    for name in ("query", "key", "value", "output"):
        assert 0.015 < np.std(found["attention"][name]["kernel"]) < 0.025
        np.testing.assert_array_equal(found["attention"][name]["bias"], 0)
