"""The network's arithmetic against float64, and against XLA's own convolutions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.model import convolutions, layers

phi = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0)), otypes=[np.float64])


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def gelu_and_slope(x):
    x = x.astype(np.float64)
    density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return x * phi(x), phi(x) + x * density


def slope(x):
    return jax.jit(jax.vmap(jax.grad(layers.gelu)))(x)


def test_gelu_is_the_exact_one():
    x = np.linspace(-12, 12, 40_001, dtype=np.float32)
    expected, expected_slope = gelu_and_slope(x)
    found = np.asarray(jax.jit(layers.gelu)(x))
    np.testing.assert_allclose(found, expected, rtol=1.2e-7, atol=5e-8)
    np.testing.assert_allclose(slope(x), expected_slope, rtol=0, atol=2e-7)


def test_gelu_and_its_slope_are_finite_everywhere():
    x = np.array([-3e38, -1e20, -50, -1e-40, -0.0, 0.0, 1e-40, 50, 1e20, 3e38], np.float32)
    np.testing.assert_allclose(layers.gelu(x), np.maximum(x, 0), rtol=1e-6, atol=1e-40)
    np.testing.assert_array_equal(slope(x), [0, 0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1])
    np.testing.assert_array_equal(layers.gelu(jnp.array([-jnp.inf, jnp.inf])), [0, np.inf])
    assert np.isnan(layers.gelu(jnp.float32(np.nan)))


def test_gelu_in_bfloat16_rounds_once():
    x = jnp.asarray(normal(0, 1000) * 3, jnp.bfloat16)
    exact, exact_slope = gelu_and_slope(np.asarray(x, np.float32))
    for found, expected in ((layers.gelu(x), exact), (slope(x), exact_slope)):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-6)


def reference_layer_norm(x, scale, bias, g, *, activate, eps=1e-5):
    """Layer normalisation in float64, and its gradients; written out by the chain rule."""
    x, scale, bias, g = (a.astype(np.float64) for a in (x, scale, bias, g))
    centred = x - x.mean(-1, keepdims=True)
    inverse = 1.0 / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    y = centred * inverse * scale + bias
    output, factor = gelu_and_slope(y) if activate else (y, 1.0)
    dy = g * factor
    frames = tuple(range(x.ndim - 1))
    d_centred = dy * scale * inverse
    d_inverse = (dy * scale * centred).sum(-1, keepdims=True)
    d_centred += d_inverse * -(inverse**3) * centred / x.shape[-1]
    dx = d_centred - d_centred.mean(-1, keepdims=True)
    return output, (dx, (dy * centred * inverse).sum(frames), dy.sum(frames))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("shape", [(3, 50, 48), (2, 7)])
def test_layer_norm_and_gradients(shape, activate, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, g = normal(0, *shape) * 2 + 3, normal(1, *shape)
    scale, bias = 1 + 0.3 * normal(2, shape[-1]), normal(3, shape[-1])

    def run(x, scale, bias):
        return layers.layer_norm(x, scale=scale, bias=bias, activate=activate)

    found, backward = jax.vjp(run, x, scale, bias)
    expected, gradients = reference_layer_norm(x, scale, bias, g, activate=activate)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)
    for one, other in zip(backward(jnp.asarray(g)), gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_layer_norm_without_affine_and_in_bfloat16():
    x, ones, zeros = normal(0, 4, 9, 32) + 100, np.ones(32), np.zeros(32)
    expected, _ = reference_layer_norm(x, ones, zeros, x, activate=False)
    np.testing.assert_allclose(layers.layer_norm(x), expected, rtol=0, atol=1e-4)
    half = jnp.asarray(x, jnp.bfloat16)
    expected, _ = reference_layer_norm(np.asarray(half, np.float32), ones, zeros, x, activate=False)
    found = layers.layer_norm(half)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("mean", [0.0, 30.0])  # of an x of variance 4
def test_layer_norm_of_bfloat16_on_accelerators(activate, mean, monkeypatch):
    """The gradients are as exact as the float32 arithmetic on the rounded arrays, rounded once."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    x, g = normal(0, 3, 40, 256) * 2 + mean, normal(1, 3, 40, 256)
    x, g = (jnp.asarray(a, jnp.bfloat16) for a in (x, g))
    scale, bias = 1 + 0.3 * normal(2, 256), normal(3, 256)

    def run(x, scale, bias):
        return layers.layer_norm(x, scale=scale, bias=bias, activate=activate)

    found, backward = jax.vjp(run, x, scale, bias)
    exact = (np.asarray(a, np.float32) for a in (x, scale, bias, g))
    expected, gradients = reference_layer_norm(*exact, activate=activate)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(found), expected, rtol=2**-8, atol=2e-4)
    dx, dscale, dbias = backward(g)
    assert dx.dtype == jnp.bfloat16 and dscale.dtype == dbias.dtype == jnp.float32
    np.testing.assert_allclose(np.float64(dx), gradients[0], rtol=2**-8, atol=2e-4)
    np.testing.assert_allclose(dscale, gradients[1], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(dbias, gradients[2], rtol=1e-4, atol=1e-2)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]  # x, and no float32 copy of it


def test_layer_norm_of_float32_on_accelerators_subtracts_the_mean_first(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = normal(0, 4, 256) + 300.0
    expected, _ = reference_layer_norm(x, np.ones(256), np.zeros(256), x, activate=False)
    np.testing.assert_allclose(layers.layer_norm(x), expected, rtol=0, atol=2e-4)


def reference_conv(x, kernel, *, stride, groups, before, after):
    """Cross-correlation in float64, frame by frame and tap by tap."""
    x = np.pad(x.astype(np.float64), ((0, 0), (before, after), (0, 0)))
    taps, width, channels = kernel.shape
    frames = (x.shape[1] - taps) // stride + 1
    y = np.zeros((x.shape[0], frames, channels))
    for group in range(groups):
        inputs = slice(group * width, (group + 1) * width)
        outputs = slice(group * channels // groups, (group + 1) * channels // groups)
        for k in range(taps):
            tap = x[:, k : k + stride * (frames - 1) + 1 : stride, inputs]
            y[..., outputs] += tap @ kernel[k, :, outputs].astype(np.float64)
    return y


def check_conv(found, backward, reference, x, kernel):
    """Values, and gradients by linearity: <g, d> of a random direction is the convolution's."""
    np.testing.assert_allclose(found, reference(x, kernel), rtol=0, atol=2e-5)
    g, dx, dkernel = (normal(i, *a.shape) for i, a in enumerate((found, x, kernel), start=5))
    x_gradient, kernel_gradient, *_ = backward(jnp.asarray(g))
    assert x_gradient.shape == x.shape and kernel_gradient.shape == kernel.shape
    for gradient, direction, change in (
        (x_gradient, dx, reference(dx, kernel)),
        (kernel_gradient, dkernel, reference(x, dkernel)),
    ):
        expected = np.sum(g * change)
        size = np.linalg.norm(gradient) * np.linalg.norm(direction)
        np.testing.assert_allclose(np.sum(gradient * direction), expected, atol=3e-6 * size)


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (3, 1), (4, 3), (2, 4)])
@pytest.mark.parametrize("frames", [40, 41])
@pytest.mark.parametrize("channels", [1, 6])
def test_strided_conv(kernel, stride, frames, channels):
    x, w = normal(0, 2, frames, channels), normal(1, kernel, channels, 5)
    found, backward = jax.vjp(lambda x, w: convolutions.strided_conv(x, w, stride=stride), x, w)
    conv = {"stride": stride, "groups": 1, "before": 0, "after": 0}
    check_conv(found, backward, lambda x, w: reference_conv(x, w, **conv), x, w)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(("kernel", "groups", "channels"), [(5, 4, 8), (4, 2, 12), (3, 1, 8)])
def test_grouped_conv(kernel, groups, channels, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, w = normal(0, 2, 21, 8), normal(1, kernel, 8 // groups, channels)
    bias = normal(2, channels)
    run = lambda x, w, bias: convolutions.grouped_conv(x, w, bias, groups=groups)
    found, backward = jax.vjp(run, x, w, bias)
    assert found.shape == (2, 21, channels)
    np.testing.assert_allclose(backward(jnp.ones_like(found))[2], np.full(channels, 42.0))
    after = (kernel - 1) // 2  # SamePad: the last frame of an even kernel is left away
    conv = {"stride": 1, "groups": groups, "before": kernel // 2, "after": after}
    check_conv(np.asarray(found) - bias, backward, lambda x, w: reference_conv(x, w, **conv), x, w)


@pytest.mark.parametrize("rows", [1, 63, 64])
def test_dropout_rate_scale_and_independence(rows):
    count = 200_000 // rows * rows
    x = jnp.ones((rows, count // rows))
    found = np.asarray(layers.dropout(x, rate=0.1, key=jax.random.key(0)))
    kept = found > 0
    np.testing.assert_allclose(found[kept], 1 / 0.9, rtol=2e-5)
    assert abs(kept.mean() - 0.9) < 4 * math.sqrt(0.09 / count)
    if rows == 64:  # the two decisions of one random word have nothing to do with each other
        both = (kept[:32] & kept[32:]).mean()
        assert abs(both - 0.81) < 4 * math.sqrt(0.81 * 0.19 / (count / 2))
        assert np.abs(kept.mean(1) - 0.9).max() < 5 * math.sqrt(0.09 / (count / rows))
    other = np.asarray(layers.dropout(x, rate=0.1, key=jax.random.key(1)))
    assert (found != other).mean() == pytest.approx(0.18, abs=0.01)


def test_dropout_is_the_identity_without_a_key_or_rate():
    x = normal(0, 4, 5)
    assert layers.dropout(x, rate=0.5, key=None) is x
    assert layers.dropout(x, rate=0.0, key=jax.random.key(0)) is x


def test_dropout_gradient_is_its_mask():
    x, key = jnp.asarray(normal(0, 6, 10)), jax.random.key(3)
    y, backward = jax.vjp(lambda x: layers.dropout(x, rate=0.3, key=key), x)
    np.testing.assert_allclose(backward(jnp.ones_like(y))[0], y / x, rtol=1e-6)


def test_a_product_of_bfloat16_keeps_its_accumulator():
    a, b = (jnp.asarray(normal(seed, 3, 5, 700), jnp.bfloat16) for seed in (0, 1))
    found, backward = jax.vjp(lambda a, b: layers.product("bqd,bkd->bqk", a, b), a, b)
    assert found.dtype == jnp.float32
    exact = np.einsum("bqd,bkd->bqk", np.float64(a), np.float64(b))
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert np.abs(np.float64(found.astype(jnp.bfloat16)) - exact).max() > 1e-2  # what is gained
    g = jnp.asarray(normal(2, 3, 5, 5))
    da, db = backward(g)
    assert da.dtype == db.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.float64(da), np.einsum("bqk,bkd->bqd", np.float64(g), np.float64(b)), rtol=0.05, atol=0.1
    )


def test_a_product_of_float32_has_the_gradients_of_einsum():
    a, b, g = normal(0, 3, 5, 7), normal(1, 3, 4, 7), normal(2, 3, 5, 4)
    run = lambda of: jax.vjp(lambda a, b: of("bqd,bkd->bqk", a, b), a, b)
    for x, y in zip(*(jax.tree.leaves((f(jnp.asarray(g)), out)) for out, f in map(run, (
        layers.product, jnp.einsum
    ))), strict=True):  # fmt: skip
        np.testing.assert_array_equal(x, y)
