"""Hugging Face's `Data2VecAudioModel`: its configuration to ours and back, and its files.

The network is DinoSR's student without heads. Ours beside it in `dinosr.safetensors`: heads,
codebooks, teacher, under fairseq's names, with configuration, step and data in its metadata.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from dinosr_jax.config import published_recipe
from dinosr_jax.interop import naming
from dinosr_jax.interop.fairseq import student_entries
from dinosr_jax.interop.torch_files import Tensor, TorchFile

SIDE_FILE = "dinosr.safetensors"
_FIELDS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "width",
    "intermediate_size": "ffn_dim",
    "num_attention_heads": "num_heads",
    "num_conv_pos_embeddings": "pos_conv_depth",
    "num_conv_pos_embedding_groups": "pos_conv_groups",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "layerdrop": "layerdrop",
}
_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "conv_bias": False,
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
}
_DEFAULTS = {  # of Data2VecAudioConfig; a config.json may leave them out
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_conv_pos_embeddings": 5,
    "num_conv_pos_embedding_groups": 16,
    "conv_pos_kernel_size": 19,
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "layerdrop": 0.1,
}


class Folder(NamedTuple):
    """What a folder of Hugging Face holds."""

    fields: dict[str, Any]  # config.json
    tensors: dict[str, np.ndarray]  # theirs, by their names
    side: dict[str, np.ndarray]  # ours beside, by fairseq's names
    metadata: dict[str, str]  # of the side file; empty where there is none


def read_folder(path: Path) -> Folder:
    """Reads a folder with `config.json` and weights.

    Args:
      path: With model.safetensors or pytorch_model.bin, whole or in shards with an index.

    Returns:
      Its configuration and tensors.

    Raises:
      ValueError: A file is missing, damaged or refused.
      OSError: A file cannot be read.
    """
    fields = _json(path / "config.json")
    if fields.get("model_type") != "data2vec-audio":
        raise ValueError(
            f"{path}/config.json: found model_type {fields.get('model_type')!r}, expected "
            "'data2vec-audio', the only one that is DinoSR's network"
        )
    for name, expected in _FIXED.items():
        if fields.get(name, expected) != expected:
            raise ValueError(
                f"{path}/config.json: {name}: found {fields[name]!r}, expected {expected!r}; this "
                "is not the network of DinoSR"
            )
    tensors: dict[str, np.ndarray] = {}
    for file in _weight_files(path):
        tensors |= read_tensors(file)
    tensors = {name.removeprefix("data2vec_audio."): value for name, value in tensors.items()}
    side, metadata = {}, {}
    if (path / SIDE_FILE).exists():
        side, metadata = _read_safetensors(path / SIDE_FILE)
    return Folder(fields, tensors, side, metadata)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value


def _weight_files(path: Path) -> Iterator[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if (path / name).exists():
            return iter([path / name])
        if index.exists():
            shards = _json(index).get("weight_map")
            shards = sorted(set(shards.values())) if isinstance(shards, dict) else [""]
            if any(not isinstance(s, str) or s != Path(s).name or not s for s in shards):
                raise ValueError(f"{index}: weight_map must name files of this folder")
            return iter([path / shard for shard in shards])
    raise ValueError(f"{path}: found config.json, but no model.safetensors or pytorch_model.bin")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a .safetensors or .bin file, by its content."""
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:] == b"{":
        return _read_safetensors(path)[0]
    with TorchFile(path) as file:
        if not isinstance(file.content, dict):
            raise ValueError(f"{path}: expected a mapping of names to tensors")
        found = {k: v for k, v in file.content.items() if isinstance(v, Tensor)}
        return {str(name): file.array(value) for name, value in found.items()}


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file: {error}") from None


def config_from_fields(fields: dict[str, Any]) -> ml_collections.ConfigDict:
    """Our configuration with a network of Hugging Face's; the recipe is the published one."""
    fields = _DEFAULTS | fields
    config = published_recipe()
    model = config.model
    for theirs, ours in _FIELDS.items():
        model[ours] = type(model[ours])(fields[theirs])
    parts = [fields[name] for name in ("conv_dim", "conv_kernel", "conv_stride")]
    model.conv_layers = tuple(tuple(layer) for layer in zip(*parts, strict=True))
    model.pos_conv_width = fields["conv_pos_kernel_size"] * model.pos_conv_depth
    model.num_codebooks = min(model.num_codebooks, model.num_layers)
    return config


def fields_of_config(config: Any) -> dict[str, Any]:
    """Hugging Face's config.json of a configuration of ours."""
    model = config.model
    dims, kernels, strides = (list(part) for part in zip(*model.conv_layers, strict=True))
    return {
        "architectures": ["Data2VecAudioModel"],
        "model_type": "data2vec-audio",
        **{theirs: model[ours] for theirs, ours in _FIELDS.items()},
        **_FIXED,
        "conv_dim": dims,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "num_feat_extract_layers": len(dims),
        "conv_pos_kernel_size": max(3, model.pos_conv_width // model.pos_conv_depth),
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
        "mask_time_prob": 0.05,  # for fine-tuning there; makes the mask embedding exist
        "mask_time_length": config.mask.length,
        "mask_feature_prob": 0.0,
        "dtype": "float32",
    }


def to_fairseq(folder: Folder, *, config: Any) -> tuple[dict[str, np.ndarray], list[str]]:
    """All tensors of a folder under fairseq's names, the side file's among them.

    Args:
      folder: Of `read_folder`.
      config: Parsed configuration of its network.

    Returns:
      Tensors, and the names that are not used. What does not belong keeps Hugging Face's name.
    """
    ours = {
        naming.huggingface(entry.name): entry.name
        for entry in student_entries(config.model)
        if not entry.name.startswith("heads.")
    }
    used, unused = {}, []
    teacher = folder.metadata.get("model") == "teacher"
    for name, value in folder.tensors.items():
        if name.startswith(("lm_head.", "classifier.", "projector.")):
            unused.append(name)
            continue
        target = ours.get(name, name)
        if teacher and config.teacher.scope == "full" and target != "mask_emb":
            target = f"_ema.{target}"
        elif teacher and target.startswith("encoder."):
            target = "_ema." + target.removeprefix("encoder.")
        used[target] = value
    return used | folder.side, unused
