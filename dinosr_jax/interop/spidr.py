"""spidr's `config.json`, which lies beside its checkpoints, to fairseq's fields and back."""

import json
from pathlib import Path
from typing import Any

from dinosr_jax.interop import fairseq

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
_SHARED_TEACHER = (
    "spidr's teacher reads the student's front end, and this one has its own (teacher.scope "
    "'full'): features and codes of the teacher are others there (a third of the codes in one "
    "measured run); student and heads are exact"
)


def fields_beside(checkpoint: Path) -> dict[str, Any]:
    """What the `config.json` beside a checkpoint of spidr says, where there is one of spidr's.

    Args:
      checkpoint: The `.pt` file.

    Returns:
      Fields by fairseq's names; the heads are among them, since spidr has a default. Empty where
      there is no such file, or it is another program's.

    Raises:
      ValueError: It is no JSON.
      OSError: It cannot be read.
    """
    path = checkpoint.parent / "config.json"
    if not path.is_file():
        return {}
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); it is read beside {checkpoint}") from None
    whole = whole if isinstance(whole, dict) else {}
    model = whole.get("model", whole)
    known = isinstance(model, dict) and any(name in model for name in _MODEL if "_" in name)
    if not known or "model_type" in whole or "num_heads" in model:  # Hugging Face's; ours
        return {}
    masking = whole.get("masking") if isinstance(whole.get("masking"), dict) else {}
    fields = {_MODEL[name]: value for name, value in model.items() if name in _MODEL}
    fields |= {_MASKING[name]: value for name, value in masking.items() if name in _MASKING}
    if "conv_feature_layers" in fields:
        fields["conv_feature_layers"] = repr(fields["conv_feature_layers"])
    if "codebook_init_decay" in fields:
        fields["codebook_end_decay"] = fields["codebook_init_decay"]
    return {"encoder_attention_heads": _DEFAULT_HEADS} | fields


def fields_of_config(config: Any) -> dict[str, Any]:
    """The inverse of `fields_beside`: what spidr's `config.json` says of a configuration of ours.

    Args:
      config: Parsed configuration.

    Returns:
      Its sections `model`, with a bias of query, key and value, which spidr leaves out by default,
      and `masking`.
    """
    fields = fairseq.fields_of_config(config)
    fields["conv_feature_layers"] = [list(layer) for layer in config.model.conv_layers]
    model = {name: fields[theirs] for name, theirs in _MODEL.items()}
    masking = {name: fields[theirs] for name, theirs in _MASKING.items()}
    return {"model": model | {"encoder_qkv_bias": True}, "masking": masking}


def warnings(config: Any) -> list[str]:
    """What spidr computes otherwise with an exported network; empty where it computes the same."""
    return [_SHARED_TEACHER] if config.teacher.scope == "full" else []
