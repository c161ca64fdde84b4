"""The arithmetic that every part of the network shares.

On CPU, XLA neither fuses nor vectorises the textbook forms of some of these well; they are written
out, with their gradients. On GPU and TPU, XLA's own gradients are used but for normalisations.

Shapes: B batch, T frames, C channels in, D channels out.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


Axes = tuple[str | None, ...]  # names of an array's first axes: 'batch', 'heads', ...; or not cut

_MESH: contextvars.ContextVar[jax.sharding.Mesh | None] = contextvars.ContextVar(
    "mesh", default=None
)


@contextlib.contextmanager
def traced_on(mesh: jax.sharding.Mesh, rules: tuple[tuple[str, Any], ...]) -> Iterator[None]:
    """While entered, the network is traced for a mesh; `rules` are flax's logical axis rules."""
    token = _MESH.set(mesh)
    try:
        with nn.logical_axis_rules(rules):
            yield
    finally:
        _MESH.reset(token)


def platform() -> str:
    """The platform that the network is traced for: 'cpu', 'gpu' or 'tpu'."""
    mesh = _MESH.get()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def place(x: Array, *axes: str | None) -> Array:
    """Tells the compiler how x is cut by the mesh; without one, x as it is."""
    return nn.with_logical_constraint(x, axes, mesh=_MESH.get())


def spread(function: Callable, axes: tuple[Axes, ...], result: Axes, **options: Any) -> Callable:
    """The function that every device runs on its own part of arrays; without a mesh, as it is."""
    mesh, spec = _MESH.get(), nn.logical_to_mesh_axes
    if mesh is None:
        return function
    specs = {"in_specs": tuple(map(spec, axes)), "out_specs": spec(result)}
    return jax.shard_map(function, mesh=mesh, **specs, check_vma=False, **options)


def split(function: Callable) -> Callable:
    """A function of (x [B, ...], parameters) that every device runs on its part of the batch."""
    if _MESH.get() is None:
        return function
    (cut,) = nn.logical_to_mesh_axes(("batch",))
    return spread(function, (("batch",), ()), ("batch",), axis_names=set(cut))


# Gaussian tail: Phi(-a) = exp(-a^2 / 2) * N(a) / M(a) to 5e-10 for a >= 0, a minimax fit
# (iteratively reweighted least squares on [0, 14], weight max(1, a) exp(-a^2 / 2)).
_TAIL_N = (0.49999999956800295, 0.30091351104540387, 0.08788439685565652, 0.010211565570936077)
_TAIL_M = (1.0, 1.3997114942753726, 0.7925784181507329, 0.21890619190218616, 0.025669649514233003)
_EPSILON = 1e-5  # of normalisations, PyTorch's; Flax's 1e-6 moves the features by 1.7e-5


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact (erf) GELU: x Phi(x) = max(x, 0) - |x| Phi(-|x|), within 2.4e-7 of float64 to |x| = 12.

    The tanh form moves the features by 1.4e-3. Only x is kept for the backward pass.
    """
    y = x.astype(jnp.float32)
    a, exponential, ratio = _tail(y)
    return (jnp.maximum(y, 0.0) - a * exponential * ratio).astype(x.dtype)


def _gelu_slope(x: Array) -> Array:
    """Derivative of `gelu` at x, any shape, float32: Phi(x) + x phi(x)."""
    a, exponential, ratio = _tail(x)
    left = exponential * (ratio - a * (2.0 * math.pi) ** -0.5)  # at -|x|
    return jnp.where(x > 0, 1.0 - left, left)


def _tail(x: Array) -> tuple[Array, Array, Array]:
    """Magnitude a = |x|, exp(-a^2 / 2) and Phi(-a) / exp(-a^2 / 2)."""
    a = jnp.minimum(jnp.abs(x), 40.0)  # where the tail is 0 already, and no power of a overflows
    horner = lambda c: functools.reduce(lambda sum, k: sum * a + k, c[-2::-1], c[-1])
    return a, jnp.exp(-0.5 * a * a), horner(_TAIL_N) / horner(_TAIL_M)


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    x, g = _anew((x, g))
    return ((g.astype(jnp.float32) * _gelu_slope(x.astype(jnp.float32))).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _anew(arrays: Any) -> Any:
    """The same arrays; XLA on CPU computes anew what it would keep of the forward pass."""
    return jax.lax.optimization_barrier(arrays) if platform() == "cpu" else arrays


def layer_norm(
    x: Array,
    *,
    scale: Array | None = None,
    bias: Array | None = None,
    activate: bool = False,
) -> Array:
    """Layer normalisation over the last axis, in float32, with a GELU after it on demand.

    Args:
      x: [..., D], any float type.
      scale: [D] float32, or None for none.
      bias: [D] float32, or None for none.
      activate: Apply `gelu` to the result (in float32).

    Returns:
      [..., D] in the type of `x`.
    """
    scale = jnp.ones(x.shape[-1:]) if scale is None else scale
    bias = jnp.zeros(x.shape[-1:]) if bias is None else bias
    if platform() == "cpu":
        return _normalise(x.astype(jnp.float32), scale, bias, activate).astype(x.dtype)
    return _normalise_narrow(x, scale, bias, activate)


# On GPU and TPU a normalisation waits for memory: the backward pass reads x and the gradient of the
# result twice, in their own type. XLA's own gradient keeps several float32 copies of them.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise_narrow(x: Array, scale: Array, bias: Array, activate: bool) -> Array:
    """Maps x [..., D] of any float type to `layer_norm` of it, in that type."""
    return _narrow_forward(x, scale, bias, activate)[0]


def _narrow_forward(x, scale, bias, activate):
    mean, inverse = _statistics(x.astype(jnp.float32), fast=x.dtype.itemsize == 2)
    y = (x.astype(jnp.float32) - mean) * inverse * _row(scale, x) + _row(bias, x)
    return (gelu(y) if activate else y).astype(x.dtype), (x, mean, inverse, scale, bias)


def _narrow_backward(activate, saved, g):
    x, mean, inverse, scale, bias = saved

    def terms(x, g):
        """Normalised x, and the gradient of it times scale plus bias; float32."""
        n, g = (x.astype(jnp.float32) - mean) * inverse, g.astype(jnp.float32)
        return n, g * _gelu_slope(n * _row(scale, x) + _row(bias, x)) if activate else g

    x, g = jax.lax.optimization_barrier((x, g))
    n, dy = terms(x, g)
    means = _two_means(dy * _row(scale, x), dy * _row(scale, x) * n)
    x, g, (mean_dy, mean_product) = jax.lax.optimization_barrier((x, g, means))
    n, dy = terms(x, g)
    dx = (dy * _row(scale, x) - mean_dy - n * mean_product) * inverse
    frames = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), jnp.sum(dy * n, frames), jnp.sum(dy, frames)


_normalise_narrow.defvjp(_narrow_forward, _narrow_backward)


# The barriers keep XLA from computing an operand anew for each of the sums over it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: Array, scale: Array, bias: Array, activate: bool) -> Array:
    return _normalise_forward(x, scale, bias, activate)[0]


def _normalise_forward(x, scale, bias, activate):
    mean, inverse = jax.lax.optimization_barrier(_statistics(x))
    y = (x - mean) * inverse * _row(scale, x) + _row(bias, x)
    return gelu(y) if activate else y, (x, mean, inverse, scale, bias)


def _normalise_backward(activate, saved, g):
    (x, mean, inverse, scale, bias), g = _anew((saved, g))
    if activate:
        slope = _gelu_slope((x - mean) * inverse * _row(scale, x) + _row(bias, x))
        g = jax.lax.optimization_barrier(g * slope)
    product = jax.lax.optimization_barrier(g * ((x - mean) * inverse))
    frames = tuple(range(x.ndim - 1))
    # sums over channels as products with a vector, which are faster
    mean_g, mean_product = jax.lax.optimization_barrier(
        [(y @ scale)[..., None] / x.shape[-1] for y in (g, product)]
    )
    dx = (g * _row(scale, x) - mean_g - (x - mean) * inverse * mean_product) * inverse
    return dx, jnp.sum(product, frames), jnp.sum(g, frames)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _statistics(x: Array, *, fast: bool = False) -> tuple[Array, Array]:
    """Mean and inverse standard deviation [..., 1] of x [..., D] over its last axis.

    `fast` reads x once, for sum and sum of squares: for bfloat16, whose rounding costs more.
    """
    if fast:
        mean, square = _two_means(x, jnp.square(x))
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
    else:
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + _EPSILON)


def _two_means(a: Array, b: Array) -> list[Array]:
    """Means of two arrays [..., D] over the last axis, [..., 1]; what both need is read once."""
    add = lambda sums, more: tuple(map(jnp.add, sums, more))
    sums = jax.lax.reduce((a, b), (0.0, 0.0), add, (a.ndim - 1,))
    return [total[..., None] / a.shape[-1] for total in sums]


def _row(vector: Array, x: Array) -> Array:
    """[D] as the last axis of x [..., D]."""
    return jnp.broadcast_to(vector, x.shape)


class LayerNorm(nn.Module):
    """`layer_norm` with learned scale and bias, and a GELU after it on demand."""

    activate: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises x [..., D] over its last axis."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return layer_norm(x, scale=scale, bias=bias, activate=self.activate)


class Linear(nn.Module):
    """Affine map of the last axis; float32 parameters, computed in the type of the input."""

    features: int
    kernel_init: Any = nn.initializers.normal(0.02)
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [..., C] to [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        y = x @ kernel.astype(x.dtype)
        return y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(equation: str, a: Array, b: Array) -> Array:
    """`jnp.einsum` of two arrays of one type, in float32: the accumulator is not rounded.

    The gradients are products in the type of the operands.
    """
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _product_backward(equation, operands, g):
    a, b = operands
    by_a = jax.linear_transpose(lambda a: jnp.einsum(equation, a, b), a)
    by_b = jax.linear_transpose(lambda b: jnp.einsum(equation, a, b), b)
    g = g.astype(a.dtype)
    return *by_a(g), *by_b(g)


product.defvjp(lambda equation, a, b: (product(equation, a, b), (a, b)), _product_backward)


def uniform_init(*, fan_in: int):
    """PyTorch's default of Conv1d and Linear, for kernel and bias: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def dropout(x: Array, *, rate: float, key: Array | None) -> Array:
    """Inverted dropout of x, of two axes at least; without a key the identity.

    A share `rate`, rounded to a multiple of 1 / 65,536, becomes zero. One random word decides on
    two entries, one in each half of the last but one axis, which no mesh cuts: threefry is most of
    the cost.
    """
    threshold = min(round(rate * 2**16), 2**16 - 1)
    if key is None or threshold == 0:
        return x
    *outer, rows, width = x.shape
    with jax.named_scope("random_bits"):
        bits = jax.random.bits(key, (*outer, (rows + 1) // 2, width), jnp.uint32)
        halves = [bits >> 16 >= threshold, bits & 0xFFFF >= threshold]
    keep = jnp.concatenate(halves, axis=-2)[..., :rows, :]
    return jnp.where(keep, x / (1.0 - threshold / 2**16), jnp.zeros_like(x))
