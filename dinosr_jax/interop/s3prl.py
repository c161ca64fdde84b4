"""Checkpoints for s3prl's `data2vec` upstream, which has the student's network.

Its loader takes a file of three entries, builds the network of `model_cfg`, and fills it strictly.
"""

from collections.abc import Mapping
from typing import Any

from dinosr_jax.interop import fairseq, fairseq_files
from dinosr_jax.model.feature_encoder import receptive_field

ENTRIES = {"task_cfg", "model_cfg", "model_weight"}
_DOWNSAMPLING = 320  # samples a frame, whatever the network has
_NOT_THERE = ("_ema.", "_codebook", "heads.")


def content(state: Any, *, config: Any) -> dict[str, Any]:
    """A checkpoint as plain values and arrays: fairseq's fields, and the student's tensors.

    `_ema` is empty: the loader removes it, and fails where it is not there.
    """
    cfg = fairseq_files.network(config)
    tensors = fairseq.from_state(state, config=config)
    weights = {n: value for n, value in tensors.items() if not n.startswith(_NOT_THERE)}
    weights |= {"_ema": {}}
    return {"task_cfg": cfg["task"], "model_cfg": cfg["model"], "model_weight": weights}


def is_content(value: Any) -> bool:
    """Whether a file holds such a checkpoint, of whatever network."""
    return isinstance(value, Mapping) and value.keys() >= ENTRIES


def warnings(config: Any) -> list[str]:
    """What s3prl takes otherwise."""
    hop = receptive_field(config.model.conv_layers)[1]
    if hop == _DOWNSAMPLING:
        return []
    return [
        f"s3prl takes {_DOWNSAMPLING} samples a frame for granted, this network has {hop}: the "
        "lengths that it derives from that do not fit its features"
    ]
