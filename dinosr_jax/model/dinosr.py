"""The student network; with the teacher's parameters in place of its own, the teacher.

Shapes: B batch, S samples, T frames, C channels, D model, L layers, N codebooks, V codewords.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinosr_jax.model import layers
from dinosr_jax.model.feature_encoder import FeatureEncoder, num_frames
from dinosr_jax.model.mfcc import normalise
from dinosr_jax.model.transformer import Layers, TransformerEncoder

Array = jax.Array


class FeatureProjection(nn.Module):
    """LayerNorm over the channels and a linear map to the model width."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, T, C] to [B, T, D]."""
        init = layers.uniform_init(fan_in=x.shape[-1])
        x = layers.LayerNorm(name="layer_norm")(x)
        return layers.Linear(self.width, kernel_init=init, bias_init=init, name="linear")(x)


class MaskEmbedding(nn.Module):
    """One learned vector in place of every masked frame."""

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """Replaces the frames of x [B, T, D] where mask [B, T] is True."""
        embedding = self.param("embedding", nn.initializers.uniform(1.0), x.shape[-1:])
        return jnp.where(mask[..., None], jnp.broadcast_to(embedding.astype(x.dtype), x.shape), x)


class Heads(nn.Module):
    """One linear classifier a codebook; logits in float32."""

    num_codebooks: int
    codebook_size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, T, D], or one [N, B, T, D] a classifier, to logits [N, B, T, V]."""
        width, n, v = x.shape[-1], self.num_codebooks, self.codebook_size
        init = layers.uniform_init(fan_in=width)
        kernel = self.param("kernel", init, (n, width, v))
        bias = self.param("bias", init, (n, v))
        equation = "btd,ndv->nbtv" if x.ndim == 3 else "nbtd,ndv->nbtv"
        logits = layers.product(equation, x, kernel.astype(x.dtype))
        logits = layers.place(logits, None, "batch", None, "codewords")
        return logits + jnp.broadcast_to(bias[:, None, None, :], logits.shape)


class DinoSR(nn.Module):
    """Feature encoder, projection, mask embedding, transformer and heads (paper section 3).

    `config` is the `model` part of the configuration; `dtype` the type of the computation
    (parameters are float32 in any case). Heads read the 'output' of the last layer, or each the
    'ffn' of its own of the top layers; they predict 'codes', or one of them the 'targets'.
    """

    config: Any
    dtype: jnp.dtype = jnp.float32
    reads: Literal["output", "ffn"] = "output"
    predicts: Literal["codes", "targets"] = "codes"

    def setup(self):
        """Makes the parts; their names are those of the parameter tree."""
        c = self.config
        self.feature_encoder = FeatureEncoder(c.conv_layers, self.dtype, c.front_end)
        self.feature_projection = FeatureProjection(c.width)
        self.mask_embedding = MaskEmbedding()
        self.encoder = TransformerEncoder(
            num_layers=c.num_layers,
            num_heads=c.num_heads,
            ffn_dim=c.ffn_dim,
            pos_conv_depth=c.pos_conv_depth,
            pos_conv_kernel=max(3, c.pos_conv_width // c.pos_conv_depth),
            pos_conv_groups=c.pos_conv_groups,
            padding_mode=c.padding_mode,
            dropout=c.dropout,
            attention_dropout=c.attention_dropout,
            activation_dropout=c.activation_dropout,
            layerdrop=c.layerdrop,
            scan_layers=c.scan_layers,
            remat=c.remat,
            attention=c.attention,
        )
        codes = self.predicts == "codes"
        self.heads = Heads(c.num_codebooks, c.codebook_size) if codes else Heads(1, c.width)

    def __call__(self, waveforms: Array) -> Array:
        """Waveforms [B, S] to logits [N, B, T, V]; runs every part, for initialisation."""
        x = self.project(waveforms)
        mask = jnp.zeros(x.shape[:2], bool)
        return self.predict(self.read(x, mask=mask))

    def convolve(self, waveforms: Array) -> Array:
        """Waveforms [B, S] to the feature encoder's output [B, T, C]."""
        return self.feature_encoder(waveforms)

    def project_features(self, features: Array, padding_mask: Array | None = None) -> Array:
        """The feature encoder's output [B, T, C] to projected, unmasked features [B, T, D].

        `padding_mask` [B, T] is True on padding, None where there is none.
        """
        if self.config.front_end == "mfcc":
            features = normalise(features, padding_mask).astype(self.dtype)
        return layers.place(self.feature_projection(features), "batch")

    def project(self, waveforms: Array, padding_mask: Array | None = None) -> Array:
        """Waveforms [B, S] to projected, unmasked features [B, T, D]."""
        return self.project_features(self.convolve(waveforms), padding_mask)

    def encode(
        self,
        projected: Array,
        *,
        mask: Array | None = None,
        channel_mask: Array | None = None,
        padding_mask: Array | None = None,
        key: Array | None = None,
        layerdrop_key: Array | None = None,
        all_layers: bool = False,
    ) -> Layers:
        """Runs the transformer on projected features.

        Args:
          projected: [B, T, D].
          mask: [B, T] bool, True where the frame becomes the mask embedding; None masks nothing.
          channel_mask: [B, D] bool, True where a channel becomes 0, in fine-tuning; None for none.
          padding_mask: [B, T] bool, True on padding; None where nothing is padded.
          key: PRNG key of dropout and LayerDrop; None evaluates.
          layerdrop_key: That of LayerDrop, where it is another: micro-batches drop the same layers.
          all_layers: Keep `ffn` and `block` of every layer.
        """
        x = projected if mask is None else self.mask_embedding(projected, mask)
        if channel_mask is not None:
            x = jnp.where(channel_mask[:, None, :], 0, x)
        keys = {"key": key, "layerdrop_key": layerdrop_key}
        return self.encoder(x, padding_mask, **keys, all_layers=all_layers)

    def read(self, projected: Array, **options: Any) -> Array:
        """What the heads read of projected features [B, T, D]: [B, T, D], or one [N, B, T, D] each.

        `options` are those of `encode`.
        """
        if self.reads == "output":
            return self.encode(projected, **options).output
        return self.encode(projected, **options, all_layers=True).ffn[-self.config.num_codebooks :]

    def predict(self, x: Array) -> Array:
        """What `read` gives to logits [N, B, T, V], or targets [1, B, T, D]; float32."""
        return self.heads(x)


def padding_mask(num_samples: Array, *, samples: int, conv_layers) -> Array:
    """Which frames are padding: [B, T] bool, True on padding.

    `num_samples` [B] int are the real samples of each utterance, `samples` is the length of the
    batch.
    """
    frames = jnp.arange(num_frames(samples, conv_layers))
    return frames[None, :] >= num_frames(num_samples, conv_layers)[:, None]
