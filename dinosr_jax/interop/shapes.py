"""The configuration of the network that a checkpoint holds, by the shapes of its tensors."""

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from dinosr_jax.errors import UserError
from dinosr_jax.interop import fairseq

ASSUMED = "ASSUMED"  # begins the notes of what may be wrong


def infer_config(
    tensors: Mapping[str, np.ndarray],
    name_of: Any,
    heads: int | None,
    notes: list[str],
    *,
    fields: dict[str, Any],
) -> ml_collections.ConfigDict:
    """The unparsed configuration of a checkpoint, by fairseq's `fields`, else by its shapes.

    `name_of` gives the format's name of a fairseq tensor; `heads` are those that are given; `notes`
    gets a line for everything that shapes do not tell. What neither tells is as published.

    Raises:
      UserError: Tensors that tell the shape are missing.
    """
    config = fairseq.config_from_fields({k: v for k, v in fields.items() if v is not None})
    config.compute_dtype = "float32"
    model = config.model

    def shape(name: str, rank: int) -> tuple[int, ...]:
        value = tensors.get(name_of(name))
        if value is None or value.ndim != rank:
            wrong = "missing" if value is None else f"found shape {list(value.shape)}"
            raise UserError(f"{name_of(name)}: {wrong}, expected {rank} axes")
        return value.shape

    def number(pattern: str) -> int:
        k = 0
        while name_of(pattern.format(k)) in tensors:
            k += 1
        return k

    if "encoder_embed_dim" not in fields:
        model.width = shape("mask_emb", 1)[0]
    if "encoder_layers" not in fields:
        model.num_layers = number("encoder.layers.{}.fc1.weight")
    if "encoder_ffn_embed_dim" not in fields:
        model.ffn_dim = shape("encoder.layers.0.fc1.weight", 2)[0]
    _infer_convolutions(model, shape, number, notes, fields)
    if heads is not None:
        model.num_heads = heads
    elif "encoder_attention_heads" not in fields:
        model.num_heads = _published_heads(model.width, notes)
    if "average_top_k_layers" not in fields:
        model.num_codebooks = number("_codebook{}")
    if "codebook_size" not in fields:
        model.codebook_size = shape("_codebook0", 2)[0]
    return config


def _infer_convolutions(
    model: Any, shape: Any, number: Any, notes: list[str], fields: dict[str, Any]
) -> None:
    if "conv_feature_layers" not in fields:
        count = number("feature_extractor.conv_layers.{}.0.weight")
        layers = []
        for i in range(count):
            channels, _, kernel = shape(f"feature_extractor.conv_layers.{i}.0.weight", 3)
            layers.append((channels, kernel, 2 if i else 5))
        model.conv_layers = tuple(layers)
        strides = ", ".join(str(layer[2]) for layer in layers)
        notes.append(f"{ASSUMED} strides {strides}, as published: shapes do not tell")
    depth = number("encoder.pos_conv.{}.0.weight")
    if "pos_conv_depth" not in fields:
        model.pos_conv_depth = depth
    _, inputs, kernel = shape("encoder.pos_conv.0.0.weight", 3)
    if "conv_pos" not in fields:
        model.pos_conv_width = kernel * model.pos_conv_depth
    if "conv_pos_groups" not in fields:
        model.pos_conv_groups = model.width // max(inputs, 1)


def _published_heads(width: int, notes: list[str]) -> int:
    """Attention heads where no field has them: 64 wide each, as published."""
    if width % 64:
        raise UserError(
            f"the number of attention heads is not known, and a width of {width} is no multiple of "
            "the published 64 a head: give it, --heads=N (load(path, heads=N))"
        )
    notes.append(
        f"{ASSUMED} {width // 64} heads, width / 64 as published: shapes do not tell (--heads=N "
        "says another; the features are wrong if it is wrong)"
    )
    return width // 64
