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

from dinosr_jax.errors import UserError
from dinosr_jax.interop import naming
from dinosr_jax.interop.fairseq import Naming, Place, check_fixed, student_entries
from dinosr_jax.interop.torch_file.reader import Tensor, TorchFile
from dinosr_jax.recipes import published_recipe

SIDE_FILE = "dinosr.safetensors"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PREFIX = "data2vec_audio."  # of a model with a head
# Field of Data2VecAudioConfig -> ours, and its default, which a config.json may leave out
_FIELDS = {
    "num_hidden_layers": ("num_layers", 12),
    "hidden_size": ("width", 768),
    "intermediate_size": ("ffn_dim", 3072),
    "num_attention_heads": ("num_heads", 12),
    "num_conv_pos_embeddings": ("pos_conv_depth", 5),
    "num_conv_pos_embedding_groups": ("pos_conv_groups", 16),
    "hidden_dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "layerdrop": ("layerdrop", 0.1),
}
_DEFAULTS = {name: default for name, (_, default) in _FIELDS.items()} | {
    "conv_pos_kernel_size": 19,
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
}
_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "conv_bias": False,
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
}


class Folder(NamedTuple):
    """What a folder of Hugging Face holds."""

    fields: dict[str, Any]  # config.json
    tensors: dict[str, np.ndarray]  # theirs, by their names
    others: list[str]  # names of what is no tensor
    side: dict[str, np.ndarray]  # ours beside, by fairseq's names
    metadata: dict[str, str]  # of the side file; empty where there is none


def read_folder(path: Path) -> Folder:
    """Reads a folder with `config.json` and weights, whole or in shards with an index.

    Raises:
      UserError: A file is missing, damaged or refused.
      OSError: A file cannot be read.
    """
    fields = read_json(path / "config.json")
    if fields.get("model_type") != "data2vec-audio":
        raise UserError(
            f"{path}/config.json: found model_type {fields.get('model_type')!r}, expected "
            "'data2vec-audio', the only one that is DinoSR's network"
        )
    check_fixed(fields, _FIXED, where=f"{path}/config.json: ")
    tensors: dict[str, np.ndarray] = {}
    others: list[str] = []
    for file in _weight_files(path):
        of_file, no_tensors = _read_tensors(file)
        if twice := sorted(of_file.keys() & tensors.keys()):
            raise UserError(f"{file}: {twice[0]} is in another file of {path} as well")
        tensors |= of_file
        others += no_tensors
    side, metadata = {}, {}
    if (path / SIDE_FILE).exists():
        side, metadata = _read_safetensors(path / SIDE_FILE)
    return Folder(fields, tensors, others, side, metadata)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file with one JSON object; raises UserError where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a file with one JSON object."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def holds_weights(path: Path) -> bool:
    """Whether a folder has weights under the names that transformers looks for."""
    names = [name for weights in _WEIGHTS for name in (weights, f"{weights}.index.json")]
    return any((path / name).exists() for name in names)


def _weight_files(path: Path) -> Iterator[Path]:
    for name in _WEIGHTS:
        index = path / f"{name}.index.json"
        if (path / name).exists():
            return iter([path / name])
        if index.exists():
            shards = read_json(index).get("weight_map")
            shards = sorted(set(shards.values())) if isinstance(shards, dict) else [""]
            if any(not isinstance(s, str) or s != Path(s).name or not s for s in shards):
                raise UserError(f"{index}: weight_map must name files of this folder")
            return iter([path / shard for shard in shards])
    raise UserError(f"{path}: found config.json, but no model.safetensors or pytorch_model.bin")


def with_mask_embedding(folder: Folder) -> tuple[Folder, list[str]]:
    """A folder with the mask embedding, zeros where transformers left it out: nothing was masked.

    With a note where it was so.
    """
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in folder.tensors) else ""
    name = f"{prefix}masked_spec_embed"
    norm = folder.tensors.get(f"{prefix}encoder.layer_norm.weight")
    masked = folder.fields.get("mask_time_prob", 0.05), folder.fields.get("mask_feature_prob", 0.0)
    if name in folder.tensors or norm is None or any(masked):
        return folder, []
    tensors = folder.tensors | {name: np.zeros(norm.shape, np.float32)}
    return folder._replace(tensors=tensors), [f"{name} is not there, nothing was masked: zeros"]


def not_normalised(path: Path) -> bool:
    """Whether a folder's preprocessor leaves waveforms at their level."""
    file = path / "preprocessor_config.json"
    return file.is_file() and read_json(file).get("do_normalize") is False


def _read_tensors(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors of a .safetensors or .bin file, by its content; names of what is no tensor."""
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:] == b"{":
        return _read_safetensors(path)[0], []
    with TorchFile(path) as file:
        if not isinstance(file.content, dict):
            raise UserError(f"{path}: expected a mapping of names to tensors")
        named = {k: v for k, v in file.content.items() if isinstance(v, Tensor)}
        tensors = {str(name): file.array(value) for name, value in named.items()}
        return tensors, [str(name) for name in file.content if name not in named]


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file: {error}") from None


def config_from_fields(fields: dict[str, Any]) -> ml_collections.ConfigDict:
    """Our configuration with a network of Hugging Face's; the recipe is the published one."""
    fields = _DEFAULTS | fields
    config = published_recipe()
    model = config.model
    for theirs, (ours, _) in _FIELDS.items():
        model[ours] = type(model[ours])(fields[theirs])
    if type(fields["conv_pos_kernel_size"]) is not int:
        wrong = f"{fields['conv_pos_kernel_size']!r:.99}"
        raise UserError(f"conv_pos_kernel_size: found {wrong}, expected a number")
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
        **{theirs: model[ours] for theirs, (ours, _) in _FIELDS.items()},
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


def naming_of(folder: Folder, *, config: Any) -> Naming:
    """Where a folder has each of fairseq's tensors: the file's own name, by fairseq's.

    That of a tensor of the side file begins with the file's name.
    """
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in folder.tensors) else ""
    teacher, full = folder.metadata.get("model") == "teacher", config.teacher.scope == "full"
    main = {}
    for entry in student_entries(config):
        source = in_main_file(entry.name, teacher=teacher, full=full)
        if source is not None:
            main[source] = f"{prefix}{naming.huggingface(entry.name)}"
    return lambda name: Place(main.get(name, f"{SIDE_FILE}: {name}"))


def in_main_file(name: str, *, teacher: bool, full: bool) -> str | None:
    """What model.safetensors has as a tensor of the student, by fairseq's name; None for heads."""
    if name.startswith("heads."):
        return None
    if teacher and full and name != "mask_emb":
        return f"_ema.{name}"
    if teacher and name.startswith("encoder."):
        return "_ema." + name.removeprefix("encoder.")
    return name


def used_tensors(folder: Folder) -> tuple[dict[str, np.ndarray], list[str]]:
    """All tensors of a folder under the names of `naming_of`, and the names that are not used."""
    unused = [n for n in folder.tensors if n.startswith(("lm_head.", "classifier.", "projector."))]
    tensors = {name: value for name, value in folder.tensors.items() if name not in unused}
    tensors |= {f"{SIDE_FILE}: {name}": value for name, value in folder.side.items()}
    return tensors, unused + [f"{name}, which is no tensor" for name in folder.others]
