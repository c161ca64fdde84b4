"""The names that spidr and Hugging Face give to fairseq's tensors."""

import re

from dinosr_jax.interop.fairseq import Place

_NORMS = {"self_attn_layer_norm": "layer_norm", "final_layer_norm": "final_layer_norm"}
_FFN = {"fc1": "feed_forward.intermediate_dense", "fc2": "feed_forward.output_dense"}
_FRONT = {"layer_norm": "feature_projection.layer_norm"}
_FRONT |= {"post_extract_proj": "feature_projection.projection"}


def _front_end(name: str) -> str | None:
    """Both formats' name of a tensor before the encoder, or None."""
    module, _, leaf = name.rpartition(".")
    if module in _FRONT:
        return f"{_FRONT[module]}.{leaf}"
    found = re.fullmatch(r"(feature_extractor\.conv_layers\.\d+)\.(0|2\.1)", module)
    if found is None:
        return None
    return f"{found[1]}.{'conv' if found[2] == '0' else 'layer_norm'}.{leaf}"


def spidr(name: str) -> Place:
    """Where spidr's DinoSR has a tensor.

    Args:
      name: fairseq's name; the teacher's begin with '_ema.'.

    Returns:
      spidr's name; query, key and value are thirds of one tensor. The front end of a teacher
      that has its own is under 'teacher.', which spidr itself does not know.
    """
    if name == "mask_emb":
        return Place("mask_embedding")
    if found := re.fullmatch(r"_codebook(_cnts)?(\d+)", name):
        return Place(f"codebooks.{found[2]}.{'counts' if found[1] else 'codebook'}")
    if found := re.fullmatch(r"heads\.(\d+)\.(\w+)", name):
        return Place(f"heads.{found[1]}.0.{found[2]}")
    teacher = name.startswith("_ema.")
    name = name.removeprefix("_ema.")
    if name.startswith(("layers.", "pos_conv.")) or (teacher and name.startswith("encoder.")):
        return _spidr_encoder(name.removeprefix("encoder."), "teacher")
    if not teacher and name.startswith("encoder."):
        return _spidr_encoder(name.removeprefix("encoder."), "student")
    return Place(f"teacher.{_front_end(name)}" if teacher else f"{_front_end(name)}")


def _spidr_encoder(name: str, network: str) -> Place:
    module, _, leaf = name.rpartition(".")
    third = None
    if found := re.fullmatch(r"pos_conv\.(\d+)\.0", module):
        module = f"pos_conv_embed.convs.{found[1]}"
    elif found := re.fullmatch(r"(layers\.\d+)\.(?:self_attn\.)?(\w+)", module):
        layer, part = found[1], found[2]
        if part in ("q_proj", "k_proj", "v_proj"):
            third, part = "qkv".index(part[0]), "attention.qkv"
        part = "attention.proj" if part == "out_proj" else (_NORMS | _FFN).get(part, part)
        module = f"{layer}.{part}"
    return Place(f"{network}.{module}.{leaf}", third)


def spidr_of_shared_teacher(name: str) -> Place:
    """As `spidr`, where the teacher shares the student's front end (scope 'encoder')."""
    if name in ("_ema.layer_norm.weight", "_ema.layer_norm.bias"):
        return Place(f"teacher.{name.removeprefix('_ema.')}")
    return spidr(name)


def huggingface(name: str) -> str:
    """Hugging Face's name of a tensor of the student, without heads.

    Args:
      name: fairseq's name.

    Returns:
      The name in `Data2VecAudioModel`.
    """
    if name == "mask_emb":
        return "masked_spec_embed"
    module, _, leaf = name.rpartition(".")
    if found := re.fullmatch(r"encoder\.pos_conv\.(\d+)\.0", module):
        return f"encoder.pos_conv_embed.layers.{found[1]}.conv.{leaf}"
    if found := re.fullmatch(r"(encoder\.layers\.\d+)\.(self_attn\.)?(\w+)", module):
        part = f"attention.{found[3]}" if found[2] else (_NORMS | _FFN)[found[3]]
        return f"{found[1]}.{part}.{leaf}"
    return name if name.startswith("encoder.") else f"{_front_end(name)}"
