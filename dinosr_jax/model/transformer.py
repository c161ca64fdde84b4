"""Positional convolution and post-LN transformer, the same for student and teacher.

Shapes: B batch, T frames, D model, F feed-forward, L layers, H heads, P positional convolutions,
K kernel, G groups.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinosr_jax.model import layers
from dinosr_jax.model.attention import FUSED_OUTPUT, Attention, SelfAttention
from dinosr_jax.model.convolutions import grouped_conv

Array = jax.Array
PaddingMode = Literal["zero", "fairseq"]
Remat = Literal["none", "dots", "full"]

# What is stored of each layer for the backward pass, which computes the rest anew. Without a
# policy, the branches of LayerDrop would store a copy of each layer's weights, also with 'none'.
_SAVED = {
    "none": jax.checkpoint_policies.everything_saveable,
    # products with the weights, and what the fused kernel of attention gives
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(FUSED_OUTPUT),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,  # the layer's input only
}


class Layers(NamedTuple):
    """The two tensors of every layer, and what they start from.

    `ffn` is the output of the feed-forward block before its dropout and residual: targets and
    codebooks live there. `block` is the layer's output: Hugging Face's and s3prl's hidden states.
    """

    input: Array  # [B, T, D] what the first layer reads
    ffn: Array | None  # [L, B, T, D], None without `all_layers`
    block: Array | None  # [L, B, T, D], None without `all_layers`
    output: Array  # [B, T, D] output of the last layer


def zero_padding(x: Array, padding_mask: Array | None) -> Array:
    """Sets the padded frames of x [B, T, D] to zero; padding_mask [B, T] is True on padding."""
    return x if padding_mask is None else jnp.where(padding_mask[..., None], 0, x)


class PositionalConvolution(nn.Module):
    """A stack of grouped convolutions, each with a LayerNorm without affine and a GELU.

    `padding_mode='zero'` zeroes padded frames before every convolution: an utterance's features do
    not depend on its neighbours in the batch; 'fairseq' zeroes them once, before the first, as
    fairseq does.
    """

    depth: int
    kernel: int
    groups: int
    padding_mode: PaddingMode = "zero"

    @nn.compact
    def __call__(self, x: Array, padding_mask: Array | None) -> Array:
        """Maps x [B, T, D] to [B, T, D]; padding_mask [B, T] or None."""
        width = x.shape[-1]
        shape = (self.depth, self.kernel, width // self.groups, width)
        init = layers.uniform_init(fan_in=self.kernel * width // self.groups)
        kernels = self.param("kernel", init, shape)
        biases = self.param("bias", init, (self.depth, width))
        x = zero_padding(x, padding_mask)

        def step(x, scanned):
            kernel, bias = scanned
            if self.padding_mode == "zero":
                x = zero_padding(x, padding_mask)
            x = grouped_conv(x, kernel, bias.astype(x.dtype), groups=self.groups)
            return layers.layer_norm(x, activate=True), None

        return jax.lax.scan(step, x, (kernels, biases))[0]


class TransformerLayer(nn.Module):
    """One post-LN layer: x = LN(x + attention(x)); f = FFN(x); x = LN(x + f)."""

    num_heads: int
    ffn_dim: int
    dropout: float
    attention_dropout: float
    activation_dropout: float
    attention: Attention = "xla"

    @nn.compact
    def __call__(
        self, x: Array, padding_mask: Array | None, *, key: Array | None
    ) -> tuple[Array, Array]:
        """Maps x [B, T, D] to its `ffn` and `block` tensors, [B, T, D]; key None: no dropout."""
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        options = (self.num_heads, self.attention_dropout, self.attention)
        y = SelfAttention(*options, name="attention")(x, padding_mask, key=keys[0])
        y = layers.dropout(y, rate=self.dropout, key=keys[1])
        x = layers.LayerNorm(name="attention_layer_norm")(x + y)
        h = layers.place(layers.Linear(self.ffn_dim, name="ffn_in")(x), "batch", None, "ffn")
        h = layers.gelu(h)  # [B, T, F]
        h = layers.dropout(h, rate=self.activation_dropout, key=keys[2])
        ffn = layers.place(layers.Linear(x.shape[-1], name="ffn_out")(h), "batch")
        y = layers.dropout(ffn, rate=self.dropout, key=keys[3])
        return ffn, layers.LayerNorm(name="ffn_layer_norm")(x + y)


class TransformerEncoder(nn.Module):
    """Positional convolution, LayerNorm and the layers (fairseq TransformerEncoder, post-LN).

    The parameters of the layers are stacked, [L, ...] a leaf: one layer is traced once.
    """

    num_layers: int
    num_heads: int
    ffn_dim: int
    pos_conv_depth: int
    pos_conv_kernel: int
    pos_conv_groups: int
    padding_mode: PaddingMode
    dropout: float
    attention_dropout: float
    activation_dropout: float
    layerdrop: float
    scan_layers: bool
    remat: Remat = "none"
    attention: Attention = "xla"

    @nn.compact
    def __call__(
        self,
        x: Array,
        padding_mask: Array | None,
        *,
        key: Array | None = None,
        layerdrop_key: Array | None = None,
        all_layers: bool = False,
    ) -> Layers:
        """Encodes projected (and, in the student, masked) features x [B, T, D].

        `padding_mask` [B, T] is True on padding; `key` is of dropout and LayerDrop, None evaluates;
        `layerdrop_key` that of LayerDrop, if another; `all_layers` keeps the two tensors of every
        layer.
        """
        shape = (self.pos_conv_depth, self.pos_conv_kernel, self.pos_conv_groups)
        pos_conv = PositionalConvolution(*shape, self.padding_mode, name="pos_conv")
        x = zero_padding(x, padding_mask)
        x = layers.LayerNorm(name="layer_norm")(x + pos_conv(x, padding_mask))
        keys = None
        if key is not None:
            layerdrop_key, _ = jax.random.split(key if layerdrop_key is None else layerdrop_key)
            key, input_key = jax.random.split(key)
            x = layers.dropout(x, rate=self.dropout, key=input_key)
            split = lambda key: jax.random.split(key, (self.num_layers, 2))
            keys = split(key)[:, 0], split(layerdrop_key)[:, 1]

        rates = (self.dropout, self.attention_dropout, self.activation_dropout)
        attention = "xla" if self.is_initializing() else self.attention  # of one frame, anywhere
        layer = TransformerLayer(self.num_heads, self.ffn_dim, *rates, attention, parent=None)

        def init_layer(init_key):
            plain = layer.clone(attention="xla", parent=None)  # for one frame, in float32
            return plain.init(init_key, jnp.zeros((1, 1, x.shape[-1])), None, key=None)["params"]

        def step(x, scanned):
            params, layer_keys = scanned
            dropout_key = None if layer_keys is None else layer_keys[0]
            run = lambda x: layer.apply({"params": params}, x, padding_mask, key=dropout_key)
            if layer_keys is None or self.layerdrop == 0.0:
                ffn, block = run(x)
            else:
                drop = jax.random.bernoulli(layer_keys[1], self.layerdrop)
                ffn, block = jax.lax.cond(drop, lambda x: (jnp.zeros_like(x), x), run, x)
            return block, (ffn, block) if all_layers else (None, None)

        stack = lambda key: jax.vmap(init_layer)(jax.random.split(key, self.num_layers))
        stacked = self.param("layers", stack)
        step = jax.checkpoint(step, policy=_SAVED[self.remat], prevent_cse=False)
        unroll = 1 if self.scan_layers else self.num_layers
        output, (ffn, block) = jax.lax.scan(step, x, (stacked, keys), unroll=unroll)
        return Layers(x, ffn, block, output)
