"""From waveform to frames: seven convolutions, or MFCC, one frame every 20 ms.

Shapes: B batch, S samples, T frames, C channels.
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinosr_jax.model import layers
from dinosr_jax.model.mfcc import mfcc

Array = jax.Array
ConvLayers = Sequence[tuple[int, int, int]]  # (channels, kernel, stride) of each convolution
FrontEnd = Literal["conv", "mfcc"]


def num_frames(num_samples, conv_layers: ConvLayers):
    """Number of frames that the feature encoder makes of a number of samples.

    Args:
      num_samples: int, or integer array of any shape.
      conv_layers: (channels, kernel, stride) of every convolution.

    Returns:
      The same type as `num_samples`; 0 where the audio is shorter than the receptive field.
    """
    for _, kernel, stride in conv_layers:
        num_samples = (num_samples - kernel) // stride + 1
    if isinstance(num_samples, int):
        return max(num_samples, 0)
    return num_samples.clip(0)


def receptive_field(conv_layers: ConvLayers) -> tuple[int, int]:
    """Receptive field and hop of a frame, in samples: (400, 320) for the published network."""
    field, hop = 1, 1
    for _, kernel, stride in conv_layers:
        field += (kernel - 1) * hop
        hop *= stride
    return field, hop


class ConvBlock(nn.Module):
    """Convolution without bias or padding, LayerNorm over channels in float32, exact GELU."""

    channels: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, T, C] to [B, (T - kernel) // stride + 1, channels]."""
        shape = (self.kernel, x.shape[-1], self.channels)
        # kaiming_normal_; jax's he_normal is a truncated normal
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, shape)
        kernel = layers.place(kernel.astype(x.dtype))  # whole: x is cut by the batch alone
        x = layers.place(layers.strided_conv(x, kernel, stride=self.stride), "batch")
        return layers.LayerNorm(activate=True, name="layer_norm")(x)


class FeatureEncoder(nn.Module):
    """The convolutional front end (paper section 3.1; fairseq ConvFeatureExtractionModel).

    With `front_end` 'mfcc', MFCC without parameters in its place: the one entry of `conv_layers`
    is (coefficients, window, hop).
    """

    conv_layers: ConvLayers
    dtype: jnp.dtype = jnp.float32
    front_end: FrontEnd = "conv"

    @nn.compact
    def __call__(self, waveforms: Array) -> Array:
        """Encodes waveforms.

        Args:
          waveforms: [B, S] float32, 16 kHz, normalised per utterance.

        Returns:
          [B, T, C] in `dtype`; MFCC, which are not normalised yet, in float32.
        """
        if self.front_end == "mfcc":
            ((coefficients, window, hop),) = self.conv_layers
            sizes = {"num_coefficients": coefficients, "window": window, "hop": hop}
            return layers.place(mfcc(waveforms.astype(jnp.float32), **sizes), "batch")
        x = waveforms[..., None].astype(self.dtype)  # [B, S, 1]
        for i, (channels, kernel, stride) in enumerate(self.conv_layers):
            x = ConvBlock(channels, kernel, stride, name=f"conv_{i}")(x)
        return x
