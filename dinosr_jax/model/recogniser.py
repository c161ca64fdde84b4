"""The one linear layer of a recogniser, on the last layer's `block`.

Shapes: B batch, T frames, D model, V symbols.
"""

import flax.linen as nn
import jax

from dinosr_jax.model import layers

Array = jax.Array


class Output(nn.Module):
    """Linear to the symbols; logits in float32 (fairseq w2v_encoder.proj)."""

    num_symbols: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, T, D] to logits [B, T, V]."""
        shape = (x.shape[-1], self.num_symbols)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        return layers.product("btd,dv->btv", x, kernel.astype(x.dtype)) + bias[None, None]
