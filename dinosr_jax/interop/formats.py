"""Any checkpoint of DinoSR, read by its content: fairseq, spidr, Hugging Face, our own exports.

`read_checkpoint(path)` is the one way in; nothing in a checkpoint is executed, torch is not needed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dinosr_jax.config import parse
from dinosr_jax.interop import fairseq, huggingface, naming
from dinosr_jax.interop.torch_files import Tensor, TorchFile, plain
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import TrainState, init_state

# what a checkpoint with absurd contents may raise on its way
_DAMAGE = (ValueError, TypeError, OSError, LookupError, AttributeError, ArithmeticError)
_DAMAGE += (MemoryError, RecursionError, SyntaxError)
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")


class InteropError(ValueError):
    """A checkpoint cannot be read; the message says what was found and what was expected."""


class Imported(NamedTuple):
    """A checkpoint in the terms of this project."""

    config: Any  # parsed
    state: TrainState  # float32, with a fresh optimizer; its step is `step`
    step: int  # finished updates
    source: str  # name of the format
    notes: list[str]  # what was inferred, what was not used; for people
    data: dict[str, Any]  # identity of the training data where known, else {}
    num_tensors: int = 0  # that were used


class Choices(NamedTuple):
    """What a checkpoint may leave open, and a person may say."""

    heads: int | None = None
    num_codebooks: int | None = None
    codebook_size: int | None = None
    seed: int = 0


def read_checkpoint(path: str | Path, *, choices: Choices | None = None) -> Imported:
    """Reads a checkpoint of any known format.

    Args:
      path: fairseq's or spidr's file, or a folder of Hugging Face's (also one that we exported).
      choices: Values for what the checkpoint does not say.

    Returns:
      Configuration, state, step, format and notes. The student alone (Hugging Face) gets a teacher
      that is its copy, and fresh heads and codebooks; a note says so.

    Raises:
      InteropError: The format is not known, or the checkpoint is damaged, refused, or does not fit
        the network that it says it is; all tensors that do not are named.
    """
    path, choices = Path(path), choices or Choices()
    try:
        if not path.exists():
            raise InteropError(f"{path}: no such file or folder")
        return _read_folder(path, choices) if path.is_dir() else _read_file(path, choices)
    except InteropError:
        raise
    except _DAMAGE as error:
        text = str(error) or type(error).__name__
        raise InteropError(text if str(path) in text else f"{path}: {text}") from None


def _read_file(path: Path, choices: Choices) -> Imported:
    with TorchFile(path) as file:
        content = file.content
        model = content.get("model") if isinstance(content, dict) else None
        model = content if model is None and isinstance(content, dict) else model
        if not isinstance(model, dict) or not model:
            raise InteropError(f"{path}: holds no mapping `model` of names to tensors")
        tensors: dict[str, Any] = {}
        beside = content.get("dinosr_jax_teacher")  # what spidr has no place for
        for name, value in [*model.items(), *(beside or {}).items()]:
            short = _PREFIX.sub("", str(name))
            if isinstance(value, dict) and short == "_ema":
                arrays = {f"_ema.{k}": v for k, v in value.items() if isinstance(v, Tensor)}
                tensors |= {name: file.array(v) for name, v in arrays.items()}
            elif isinstance(value, Tensor):
                tensors[short] = file.array(value)
        rest = {k: plain(v) for k, v in content.items() if k not in ("model", "optimizer")}
    if any(name.startswith("w2v_encoder.") for name in tensors):
        raise InteropError(
            f"{path}: a fine-tuned fairseq model (w2v_encoder.*), without heads and codebooks; "
            "expected the pre-trained dinosr.ckpt that it started from"
        )
    if "mask_emb" in tensors:
        return _from_fairseq(path, tensors, rest, choices)
    if "mask_embedding" in tensors:
        return _from_spidr(path, tensors, rest, choices)
    some = ", ".join(list(tensors)[:3])
    raise InteropError(
        f"{path}: not a checkpoint of DinoSR: expected fairseq's mask_emb or spidr's "
        f"mask_embedding among its tensors, found {some or 'no tensor'}, ..."
    )


def _from_fairseq(
    path: Path, tensors: dict[str, np.ndarray], rest: dict[str, Any], choices: Choices
) -> Imported:
    notes = []
    whole = rest.get("cfg") or rest.get("args") or {}
    whole = whole if isinstance(whole, dict) else {}
    fields = whole.get("model") if isinstance(whole.get("model"), dict) else whole
    ours = _saved(rest.get("extra_state"))
    if ours.get("config"):
        config = ml_collections.ConfigDict(json.loads(ours["config"]))
    else:
        config = infer_config(tensors, lambda name: name, choices, notes, said=fields)
        if {"encoder_layers", "conv_pos"} & fields.keys():
            notes.append("network: as its cfg says")
        taken = fairseq.add_recipe(config, whole)
        notes.append(f"recipe: {', '.join(taken)} of its cfg" if taken else "recipe: published")
    if f"_ema.encoder.{_LAST_NORM}" in tensors:
        config.teacher.scope = "full"
    unused = [name for name in tensors if re.match(r"_pre_encoder_|_?pre_encoder", name)]
    unused += [k for k in rest if k in ("last_optimizer_state", "task_state", "criterion")]
    tensors = {name: value for name, value in tensors.items() if name not in unused}
    state = _state(tensors, config)
    notes += [f"not used: {name}" for name in unused]
    step = _fairseq_step(rest)
    if step is None:
        notes.append("step: the checkpoint has none; 0 is taken (--step=N says another)")
    return _imported(config, state, step or 0, "fairseq", notes, ours, len(tensors))


_LAST_NORM = "layer_norm.weight"


def _saved(extra: Any) -> dict[str, Any]:
    found = extra.get("dinosr_jax") if isinstance(extra, dict) else None
    return found if isinstance(found, dict) else {}


def _fairseq_step(rest: dict[str, Any]) -> int | None:
    history = rest.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else {}
    extra = rest.get("extra_state") if isinstance(rest.get("extra_state"), dict) else {}
    for place in (last, extra, rest):
        value = place.get("num_updates") if isinstance(place, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def _from_spidr(
    path: Path, tensors: dict[str, np.ndarray], rest: dict[str, Any], choices: Choices
) -> Imported:
    notes: list[str] = []
    ours = _saved(rest)
    step = tensors.pop("current_step", None)
    found = {
        naming.spidr_of_shared_teacher(f"{net}layers.{i}.self_attn.q_proj.bias").name
        for i in range(_count(tensors, r"student\.layers\.(\d+)\."))
        for net in ("encoder.", "_ema.")
    }
    missing = sorted(found - tensors.keys())
    for name in missing:
        weight = tensors.get(name.removesuffix("bias") + "weight")
        if weight is not None and weight.ndim:
            tensors[name] = np.zeros(weight.shape[0], np.float32)
    if missing:
        notes.append(f"{len(missing)} biases of query, key and value are not there: zeros")
    if ours.get("config"):
        config = ml_collections.ConfigDict(json.loads(ours["config"]))
    else:
        config = infer_config(tensors, _spidr_name, choices, notes, said={})
    shared = config.teacher.scope == "encoder"
    places = naming.spidr_of_shared_teacher if shared else naming.spidr
    state = _state(tensors, config, naming=places, source="spidr")
    if step is None:
        notes.append("step: the checkpoint has no current_step; 0 is taken (--step=N)")
    steps = 0 if step is None else int(np.asarray(step).reshape(-1)[0])
    return _imported(config, state, steps, "spidr", notes, ours, len(tensors) - len(missing))


def _spidr_name(name: str) -> str:
    return naming.spidr_of_shared_teacher(name).name


def _state(tensors: dict[str, np.ndarray], config: Any, **kwargs: Any) -> TrainState:
    """As `fairseq.to_state`; a configuration beyond all tensors is refused before it is built."""
    config = parse(config)
    numbers = sum(value.size for value in tensors.values())
    model = config.model
    limits = {"num_layers": len(tensors), "num_codebooks": len(tensors)}
    limits |= {"pos_conv_depth": len(tensors), "codebook_size": numbers}
    limits |= {"width": numbers, "ffn_dim": numbers}
    absurd = [f"{name} {model[name]}" for name in limits if model[name] > limits[name]]
    if absurd:
        raise ValueError(
            f"its configuration says {', '.join(absurd)}; it holds {len(tensors)} tensors with "
            f"{numbers:,} numbers"
        )
    return fairseq.to_state(tensors, config=config, **kwargs)


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    numbers = {int(m[1]) for name in tensors if (m := re.match(pattern, name))}
    return len(numbers)


def infer_config(
    tensors: Mapping[str, np.ndarray],
    name_of: Any,
    choices: Choices,
    notes: list[str],
    *,
    said: dict[str, Any],
) -> ml_collections.ConfigDict:
    """The configuration that tensors of these shapes have.

    Args:
      tensors: Name -> array.
      name_of: The format's name of a fairseq tensor.
      choices: What a person says.
      notes: Gets a line for everything that shapes do not tell.
      said: fairseq's fields, where the checkpoint has them; they are believed.

    Returns:
      Unparsed configuration; the recipe is the published one where `said` does not say.

    Raises:
      InteropError: Tensors that tell the shape are missing.
    """
    config = fairseq.config_from_fields({k: v for k, v in said.items() if v is not None})
    config.compute_dtype = "float32"
    model = config.model

    def shape(name: str, rank: int) -> tuple[int, ...]:
        value = tensors.get(name_of(name))
        if value is None or value.ndim != rank:
            found = "missing" if value is None else f"found shape {list(value.shape)}"
            raise InteropError(f"{name_of(name)}: {found}, expected {rank} axes")
        return value.shape

    def number(pattern: str) -> int:
        k = 0
        while name_of(pattern.format(k)) in tensors:
            k += 1
        return k

    if "encoder_embed_dim" not in said:
        model.width = shape("mask_emb", 1)[0]
    if "encoder_layers" not in said:
        model.num_layers = number("encoder.layers.{}.fc1.weight")
    if "encoder_ffn_embed_dim" not in said:
        model.ffn_dim = shape("encoder.layers.0.fc1.weight", 2)[0]
    _infer_convolutions(model, shape, number, notes, said)
    if choices.heads is not None:
        model.num_heads = choices.heads
    elif "encoder_attention_heads" not in said:
        model.num_heads = max(1, model.width // 64)
        notes.append(
            f"ASSUMED {model.num_heads} heads, width / 64 as published: shapes do not tell "
            "(--heads=N says another; the features are wrong if it is wrong)"
        )
    if "average_top_k_layers" not in said:
        model.num_codebooks = number("_codebook{}")
    if "codebook_size" not in said:
        model.codebook_size = shape("_codebook0", 2)[0]
    return config


def _infer_convolutions(
    model: Any, shape: Any, number: Any, notes: list[str], said: dict[str, Any]
) -> None:
    if "conv_feature_layers" not in said:
        count = number("feature_extractor.conv_layers.{}.0.weight")
        layers = []
        for i in range(count):
            channels, _, kernel = shape(f"feature_extractor.conv_layers.{i}.0.weight", 3)
            layers.append((channels, kernel, 2 if i else 5))
        model.conv_layers = tuple(layers)
        strides = ", ".join(str(layer[2]) for layer in layers)
        notes.append(f"ASSUMED strides {strides}, as published: shapes do not tell")
    depth = number("encoder.pos_conv.{}.0.weight")
    if "pos_conv_depth" not in said:
        model.pos_conv_depth = depth
    _, inputs, kernel = shape("encoder.pos_conv.0.0.weight", 3)
    if "conv_pos" not in said:
        model.pos_conv_width = kernel * model.pos_conv_depth
    if "conv_pos_groups" not in said:
        model.pos_conv_groups = model.width // max(inputs, 1)


def _read_folder(path: Path, choices: Choices) -> Imported:
    if not (path / "config.json").is_file():
        raise InteropError(f"{path}: no checkpoint: expected a file, or a folder with config.json")
    folder = huggingface.read_folder(path)
    if folder.metadata.get("config"):
        config = ml_collections.ConfigDict(json.loads(folder.metadata["config"]))
    else:
        config = huggingface.config_from_fields(folder.fields)
        config.model.num_codebooks = choices.num_codebooks or config.model.num_codebooks
        config.model.codebook_size = choices.codebook_size or config.model.codebook_size
        config.seed = choices.seed
    config = parse(config)
    tensors, unused = huggingface.to_fairseq(folder, config=config)
    notes = [f"not used: {name}" for name in unused]
    count = len(tensors)
    if not folder.side:
        notes.append(
            "STUDENT ONLY: the teacher is its copy; heads and codebooks are fresh, from seed "
            f"{config.seed}: units mean nothing before it is trained on"
        )
        tensors = _complete(tensors, config)
    state = _state(tensors, config, source="Hugging Face")
    saved = {"data": folder.metadata.get("data")}
    step = int(folder.metadata.get("step", 0))
    return _imported(config, state, step, "huggingface", notes, saved, count)


def _complete(tensors: dict[str, np.ndarray], config: Any) -> dict[str, np.ndarray]:
    """Adds the teacher as a copy of the student, and fresh heads and codebooks."""
    fresh = jax.jit(lambda: init_state(config, optimizer=make_optimizer(config)))()
    named = fairseq.from_state(fresh, config=config)
    for name in named:
        if name.startswith(("heads.", "_codebook")):
            tensors.setdefault(name, named[name])
        elif name.startswith("_ema.") and f"encoder.{name[5:]}" in tensors:
            tensors[name] = tensors[f"encoder.{name[5:]}"]
    return tensors


def _imported(
    config: Any,
    state: TrainState,
    step: int,
    source: str,
    notes: list[str],
    saved: dict[str, Any],
    count: int,
) -> Imported:
    data = saved.get("data")
    data = json.loads(data) if isinstance(data, str) else {}
    return Imported(
        parse(config), at_step(state, step), step, source, notes, data, num_tensors=count
    )


def at_step(state: TrainState, step: int) -> TrainState:
    """The state as after `step` updates: schedules of the fresh optimizer go on from there."""
    number = jnp.asarray(step, jnp.int32)

    def count(path: Any, leaf: Any) -> Any:
        return number if getattr(path[-1], "name", "") == "count" else leaf

    optimizer = jax.tree_util.tree_map_with_path(count, state.opt_state)
    return state.replace(step=number, opt_state=optimizer)
