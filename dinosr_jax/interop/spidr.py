"""spidr's `config.json`, which lies beside its checkpoints, to our fields and back.

The tensors of its SpidR have the names and shapes of those of its DinoSR; the file alone tells.
"""

import json
import re
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from dinosr_jax.errors import UserError
from dinosr_jax.interop import fairseq, naming
from dinosr_jax.interop.shapes import ASSUMED, infer_config
from dinosr_jax.objective.teacher import EXPONENTIAL_THRESHOLD

# src/spidr/config.py of facebookresearch/spidr, whose comments give fairseq's names
_MODEL = {
    "extractor_mode": "extractor_mode",
    "extractor_conv_bias": "conv_bias",
    "extractor_conv_layer_config": "conv_feature_layers",
    "encoder_embed_dim": "encoder_embed_dim",
    "encoder_pos_conv_kernel": "conv_pos",
    "encoder_pos_conv_groups": "conv_pos_groups",
    "encoder_pos_conv_depth": "pos_conv_depth",
    "encoder_num_layers": "encoder_layers",
    "encoder_num_heads": "encoder_attention_heads",
    "encoder_ff_interm_features": "encoder_ffn_embed_dim",
    "encoder_dropout": "dropout",
    "encoder_attention_dropout": "attention_dropout",
    "encoder_ff_interm_dropout": "activation_dropout",
    "encoder_layer_drop": "encoder_layerdrop",
    "encoder_layer_norm_first": "layer_norm_first",
    "codebook_size": "codebook_size",
    "codebook_decay": "codebook_init_decay",
    "num_codebooks": "average_top_k_layers",
    "ema_start_decay": "ema_decay",
    "ema_final_decay": "ema_end_decay",
    "ema_final_step": "ema_anneal_end_step",
    "freeze_step": "freeze_teacher_step",
}
_MASKING = {"mask_prob": "mask_prob", "mask_length": "mask_length"}
_DEFAULT_HEADS = 12  # of whatever width
_DEFAULT_TIMESCALE = 20_000
_SHARED_TEACHER = (
    "spidr's teacher reads the student's front end, and this one has its own (teacher.scope "
    "'full'): features and codes of the teacher are others there (a third of the codes in one "
    "measured run); student and heads are exact"
)


def fields_beside(checkpoint: Path) -> dict[str, Any]:
    """Fields of the `config.json` beside a checkpoint of spidr, by fairseq's names.

    The heads are among them, since spidr has a default. Empty where there is no such file, or it is
    another program's; UserError where it is no JSON.
    """
    whole = _read(checkpoint)
    if not whole:
        return {}
    model = whole.get("model", whole)
    masking = whole.get("masking") if isinstance(whole.get("masking"), dict) else {}
    fields = {_MODEL[name]: value for name, value in model.items() if name in _MODEL}
    fields |= {_MASKING[name]: value for name, value in masking.items() if name in _MASKING}
    if "conv_feature_layers" in fields:
        fields["conv_feature_layers"] = repr(fields["conv_feature_layers"])
    if "codebook_init_decay" in fields:
        fields["codebook_end_decay"] = fields["codebook_init_decay"]
    return {"encoder_attention_heads": _DEFAULT_HEADS} | fields


def infer(
    tensors: dict[str, np.ndarray],
    *,
    checkpoint: Path,
    heads: int | None,
    objective: str | None,
    notes: list[str],
) -> ml_collections.ConfigDict:
    """The unparsed configuration of a checkpoint, by config.json beside it, else by its shapes.

    `heads` and `objective` are values for what neither has; `notes` gets a line for everything that
    is not sure.

    Raises:
      UserError: The file is no JSON, or tensors that tell the shape are missing.
    """
    fields, whole = fields_beside(checkpoint), _read(checkpoint)
    name_of = lambda name: naming.spidr_of_shared_teacher(name).name
    config = infer_config(tensors, name_of, heads, notes, fields=fields)
    notes.append("network: as config.json beside it says" if fields else "recipe: published")
    model, run = whole.get("model", whole), whole.get("run")
    is_spidr = isinstance(run, dict) and run.get("model_type") == "spidr"
    if whole:
        objective = "spidr" if is_spidr or "ema_timescale" in model else "dinosr"
    elif objective is None:
        notes.append(
            f"{ASSUMED} objective 'dinosr': nothing tells it from spidr's SpidR, whose heads read "
            "other layers (--objective=spidr says so)"
        )
    config.objective = objective or "dinosr"
    if config.objective == "spidr":
        if config.model.layerdrop and "encoder_layerdrop" in fields:
            notes.append(f"model.layerdrop: {config.model.layerdrop} there, 0 here")
        config.model.layerdrop = 0.0
        timescale = model.get("ema_timescale", _DEFAULT_TIMESCALE)
        if not isinstance(timescale, int | float) or timescale % 1 or timescale <= 0:
            raise UserError(
                f"{checkpoint.parent}/config.json: ema_timescale: found {timescale!r}, expected "
                "a whole number of updates"
            )
        config.teacher.update(schedule="exponential", timescale_steps=int(timescale))
    return config


def add_missing_biases(
    tensors: dict[str, np.ndarray], notes: list[str]
) -> tuple[dict[str, np.ndarray], int]:
    """The tensors with biases of query, key and value, which spidr has on demand, and how many."""
    layers = (re.match(r"student\.layers\.(\d+)\.", name) for name in tensors)
    count = len({int(match[1]) for match in layers if match})
    names = {
        naming.spidr_of_shared_teacher(f"{net}layers.{i}.self_attn.q_proj.bias").name
        for i in range(count)
        for net in ("encoder.", "_ema.")
    }
    missing = [] if names & tensors.keys() else sorted(names)
    zeros = {}
    for name in missing:
        weight = tensors.get(name.removesuffix("bias") + "weight")
        if weight is not None and weight.ndim:
            zeros[name] = np.zeros(weight.shape[0], np.float32)
    if missing:
        notes.append(f"{len(missing)} biases of query, key and value are not there: zeros")
    return tensors | zeros, len(missing)


def _read(checkpoint: Path) -> dict[str, Any]:
    """The file's fields; empty where there is no such file, or it is another program's."""
    path = checkpoint.parent / "config.json"
    if not path.is_file():
        return {}
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); it is read beside {checkpoint}") from None
    whole = whole if isinstance(whole, dict) else {}
    model = whole.get("model", whole)
    known = isinstance(model, dict) and any(name in model for name in _MODEL if "_" in name)
    if not known or "model_type" in whole or "num_heads" in model:  # Hugging Face's; ours
        return {}
    return whole


def fields_of_config(config: Any) -> dict[str, Any]:
    """The inverse of `fields_beside`: spidr's `config.json`, its sections `model` and `masking`."""
    fields = fairseq.fields_of_config(config)
    fields["conv_feature_layers"] = [list(layer) for layer in config.model.conv_layers]
    model = {name: fields[theirs] for name, theirs in _MODEL.items()}
    masking = {name: fields[theirs] for name, theirs in _MASKING.items()}
    model |= {"encoder_qkv_bias": config.model.qkv_bias}
    if config.objective == "spidr":
        timescale = config.teacher.timescale_steps
        model |= {"ema_timescale": timescale, "ema_threshold": EXPONENTIAL_THRESHOLD}
    return {"model": model, "masking": masking}


def warnings(config: Any) -> list[str]:
    """What spidr computes otherwise with an exported network."""
    texts = [_SHARED_TEACHER] if config.teacher.scope == "full" else []
    theirs = "exponential" if config.objective == "spidr" else "linear"
    if config.teacher.schedule != theirs:
        texts.append(
            f"where it is trained on there, its teacher slows down by another schedule: {theirs}, "
            f"not {config.teacher.schedule} (teacher.schedule)"
        )
    return texts
