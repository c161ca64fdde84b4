"""The names that spidr and Hugging Face give to fairseq's tensors, as tables of modules."""

import re

from dinosr_jax.interop.fairseq import Place

# what is not in these tables has the same name there
_FRONT_END = {
    r"feature_extractor\.conv_layers\.(\d+)\.0": r"feature_extractor.conv_layers.\1.conv",
    r"feature_extractor\.conv_layers\.(\d+)\.2\.1": r"feature_extractor.conv_layers.\1.layer_norm",
    r"layer_norm": r"feature_projection.layer_norm",
    r"post_extract_proj": r"feature_projection.projection",
}
_ENCODER = {
    r"layers\.(\d+)\.self_attn_layer_norm": r"layers.\1.layer_norm",
    r"layers\.(\d+)\.fc1": r"layers.\1.feed_forward.intermediate_dense",
    r"layers\.(\d+)\.fc2": r"layers.\1.feed_forward.output_dense",
}
_SPIDR_ENCODER = _ENCODER | {
    r"pos_conv\.(\d+)\.0": r"pos_conv_embed.convs.\1",
    r"layers\.(\d+)\.self_attn\.[qkv]_proj": r"layers.\1.attention.qkv",
    r"layers\.(\d+)\.self_attn\.out_proj": r"layers.\1.attention.proj",
}
_HUGGINGFACE_ENCODER = _ENCODER | {
    r"pos_conv\.(\d+)\.0": r"pos_conv_embed.layers.\1.conv",
    r"layers\.(\d+)\.self_attn\.(\w+)": r"layers.\1.attention.\2",
}
_SPIDR_REST = {
    r"mask_emb": r"mask_embedding",
    r"_codebook(\d+)": r"codebooks.\1.codebook",
    r"_codebook_cnts(\d+)": r"codebooks.\1.counts",
    r"heads\.(\d+)\.(\w+)": r"heads.\1.0.\2",
}


def _translate(name: str, table: dict[str, str]) -> str | None:
    for pattern, theirs in table.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(theirs)
    return None


def _tensor(name: str, table: dict[str, str]) -> str:
    """Their name of a tensor, by that of its module."""
    module, _, leaf = name.rpartition(".")
    return f"{_translate(module, table) or module}.{leaf}"


def spidr(name: str) -> Place:
    """Where spidr's DinoSR has a tensor.

    Args:
      name: fairseq's name; the teacher's begin with '_ema.'.

    Returns:
      spidr's name; query, key and value are thirds of one tensor. The front end of a teacher
      that has its own is under 'teacher.', which spidr itself does not know.
    """
    if rest := _translate(name, _SPIDR_REST):
        return Place(rest)
    inner = name.removeprefix("_ema.")
    if not inner.startswith(("encoder.", "layers.", "pos_conv.")):
        return Place(("teacher." if inner != name else "") + _tensor(inner, _FRONT_END))
    network = "teacher" if inner != name else "student"
    third = re.search(r"self_attn\.([qkv])_proj\.", inner)
    place = _tensor(inner.removeprefix("encoder."), _SPIDR_ENCODER)
    return Place(f"{network}.{place}", "qkv".index(third[1]) if third else None)


def spidr_of_shared_teacher(name: str) -> Place:
    """As `spidr`, where the teacher shares the student's front end (scope 'encoder')."""
    if name in ("_ema.layer_norm.weight", "_ema.layer_norm.bias"):
        return Place(f"teacher.{name.removeprefix('_ema.')}")
    return spidr(name)


def huggingface(name: str) -> str:
    """The name in Hugging Face's `Data2VecAudioModel` of a tensor of the student, without heads."""
    if name == "mask_emb":
        return "masked_spec_embed"
    if name.startswith("encoder."):
        return f"encoder.{_tensor(name.removeprefix('encoder.'), _HUGGINGFACE_ENCODER)}"
    return _tensor(name, _FRONT_END)
