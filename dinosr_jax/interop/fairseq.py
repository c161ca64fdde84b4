"""Parameters under the names of the official fairseq checkpoint, to a TrainState and back.

Works on plain mappings of names to arrays; how they are read from a file is no matter here.
Layouts: PyTorch's Linear is [out, in] and its Conv1d [out, in / groups, kernel]; ours are
[in, out] and [kernel, in / groups, out]. Ours also stack layers, positional convolutions and heads.
"""

import ast
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dinosr_jax.errors import UserError
from dinosr_jax.objective.codebook import Codebook
from dinosr_jax.objective.objectives import OBJECTIVES
from dinosr_jax.recipes import FIELDS, published_recipe
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import TrainState, init_state

Kind = Literal["plain", "linear", "conv"]
PROJ = "proj"  # the output layer of a recogniser
_MAX_CONV_LAYERS = 100  # DinoSR's has 7
_AXES: dict[Kind, tuple[int, ...] | None] = {"plain": None, "linear": (1, 0), "conv": (2, 1, 0)}

_FIELDS = {
    field.fairseq: name
    for name, field in FIELDS.items()
    if field.fairseq.isidentifier()
    and name.startswith(("model.", "mask.", "teacher.", "codebook."))
    and name != "model.conv_layers"  # a text there
}
# Fields of this project's network; a checkpoint with other values is another network.
_FIXED = {
    "extractor_mode": "layer_norm",
    "conv_bias": False,
    "layer_norm_first": False,
    "discrete": True,
    "instance_norm_target_layer": True,
}


class Entry(NamedTuple):
    """One fairseq tensor: its name, and where it lives here."""

    name: str
    path: tuple[str, ...]  # in the parameter tree
    index: int | None  # in a stacked leaf
    kind: Kind


class Place(NamedTuple):
    """Where another format has a fairseq tensor: a name, and which third of it (q, k, v), if so."""

    name: str
    third: int | None = None


Naming = Callable[[str], Place]


def config_from_fields(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The unparsed configuration of fairseq's model fields, else as published, in float32.

    Raises:
      UserError: The fields describe another network than DinoSR's.
    """
    check_fixed(fields, _FIXED, where="fairseq field ")
    config = published_recipe()
    config.compute_dtype = "float32"
    for name, ours in _FIELDS.items():
        if name in fields:
            section, field = ours.split(".")
            config[section][field] = type(config[section][field])(fields[name])
    if "conv_feature_layers" in fields:
        text = fields["conv_feature_layers"]
        config.model.conv_layers = _conv_layers(text)
    if "ema_transformer_only" in fields:
        config.teacher.scope = "encoder" if fields["ema_transformer_only"] else "full"
    return config


def check_fixed(fields: Mapping[str, Any], fixed: Mapping[str, Any], *, where: str) -> None:
    """Raises UserError where a field has another value than the one that DinoSR's network has."""
    for name, expected in fixed.items():
        if fields.get(name, expected) != expected:
            raise UserError(
                f"{where}{name}: found {fields[name]!r}, expected {expected!r}; this is not the "
                "network of DinoSR"
            )


def _conv_layers(text: str) -> tuple[tuple[int, int, int], ...]:
    """Reads '[(512, 10, 5)] + [(512, 3, 2)] * 4' without evaluating code."""

    def read(node: ast.AST) -> list[Any]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            layers = read(node.left) + read(node.right)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            times = ast.literal_eval(node.right)
            if type(times) is not int or times > _MAX_CONV_LAYERS:
                raise ValueError  # before a list of that length is made
            layers = read(node.left) * times
        else:
            layers = ast.literal_eval(node)
        if not isinstance(layers, list) or len(layers) > _MAX_CONV_LAYERS:
            raise ValueError
        return layers

    try:
        return tuple(tuple(layer) for layer in read(ast.parse(text, mode="eval").body))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise UserError(
            f"fairseq field conv_feature_layers: found {repr(text)[:200]}, expected a list of "
            f"(channels, kernel, stride), {_MAX_CONV_LAYERS} at most"
        ) from None


def _norm(name: str, path: tuple[str, ...], index: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*path, "scale"), index, "plain")
    yield Entry(f"{name}.bias", (*path, "bias"), index, "plain")


def _affine(
    name: str, path: tuple[str, ...], kind: Kind, index: int | None = None
) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*path, "kernel"), index, kind)
    yield Entry(f"{name}.bias", (*path, "bias"), index, "plain")


def _front_end_entries(model: Any) -> Iterator[Entry]:
    """Feature encoder, its LayerNorm and the projection."""
    for i in range(len(model.conv_layers)):
        name, path = f"feature_extractor.conv_layers.{i}", ("feature_encoder", f"conv_{i}")
        yield Entry(f"{name}.0.weight", (*path, "kernel"), None, "conv")
        yield from _norm(f"{name}.2.1", (*path, "layer_norm"))
    yield from _norm("layer_norm", ("feature_projection", "layer_norm"))
    yield from _affine("post_extract_proj", ("feature_projection", "linear"), "linear")


def _encoder_entries(model: Any) -> Iterator[Entry]:
    """Positional convolution, LayerNorm and layers; names without fairseq's `encoder.`."""
    for i in range(model.pos_conv_depth):
        yield from _affine(f"pos_conv.{i}.0", ("encoder", "pos_conv"), "conv", i)
    yield from _norm("layer_norm", ("encoder", "layer_norm"))
    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    for i in range(model.num_layers):
        path = ("encoder", "layers")
        for theirs, ours in attention.items():
            name = f"layers.{i}.self_attn.{theirs}"
            yield from _affine(name, (*path, "attention", ours), "linear", i)
        norm = f"layers.{i}.self_attn_layer_norm"
        yield from _norm(norm, (*path, "attention_layer_norm"), i)
        yield from _affine(f"layers.{i}.fc1", (*path, "ffn_in"), "linear", i)
        yield from _affine(f"layers.{i}.fc2", (*path, "ffn_out"), "linear", i)
        yield from _norm(f"layers.{i}.final_layer_norm", (*path, "ffn_layer_norm"), i)


def student_entries(config: Any) -> Iterator[Entry]:
    """Every parameter of the student; where targets are regressed, the map to them is heads.0."""
    yield Entry("mask_emb", ("mask_embedding", "embedding"), None, "plain")
    yield from _front_end_entries(config.model)
    for entry in _encoder_entries(config.model):
        yield entry._replace(name=f"encoder.{entry.name}")
    for k in range(config.model.num_codebooks if _has_codes(config) else 1):
        yield from _affine(f"heads.{k}", ("heads",), "linear", k)


def _has_codes(config: Any) -> bool:
    return OBJECTIVES[config.objective].predicts == "codes"


def _teacher_entries(config: Any) -> Iterator[Entry]:
    """Every parameter of the teacher, under fairseq's `_ema.`."""
    full = config.teacher.scope == "full"
    if full:
        for entry in _front_end_entries(config.model):
            yield entry._replace(name=f"_ema.{entry.name}")
    for entry in _encoder_entries(config.model):
        yield entry._replace(name=f"_ema.encoder.{entry.name}" if full else f"_ema.{entry.name}")


def _recogniser_entries(config: Any) -> Iterator[Entry]:
    """Every parameter of a recogniser: the student without heads, and the output layer."""
    yield from (e for e in student_entries(config) if not e.name.startswith("heads."))
    yield from _affine(PROJ, ("output",), "linear")


def _codebook_entries(model: Any) -> Iterator[Entry]:
    """Sums and counts of every codebook."""
    for k in range(model.num_codebooks):
        yield Entry(f"_codebook{k}", ("sums",), k, "plain")
        yield Entry(f"_codebook_cnts{k}", ("counts",), k, "plain")


def _entries(config: Any) -> dict[str, Iterator[Entry]]:
    """The entries of each part of a TrainState; a recogniser has parameters only."""
    if config.task == "ctc":
        return {
            "params": _recogniser_entries(config),
            "teacher_params": iter(()),
            "codebook": iter(()),
        }
    return {
        "params": student_entries(config),
        "teacher_params": _teacher_entries(config),
        "codebook": _codebook_entries(config.model) if _has_codes(config) else iter(()),
    }


def to_state(
    tensors: Mapping[str, Any], *, config: Any, naming: Naming = Place, source: str = "fairseq"
) -> TrainState:
    """Makes a TrainState, float32, of a checkpoint's tensors, at step 0 with a fresh optimizer.

    Args:
      tensors: fairseq name -> array; the teacher under '_ema.NAME' or as a mapping '_ema'.
      config: Parsed configuration of the same network.
      naming: Where the tensors of another format are, by their fairseq names.
      source: Name of the format, for messages.

    Raises:
      UserError: Tensors are missing, unknown, of another shape than the configuration says, or
        not finite; all of them are named.
    """
    tensors = dict(tensors)
    teacher = tensors.pop("_ema", None)
    if isinstance(teacher, Mapping):
        tensors |= {f"_ema.{name}": value for name, value in teacher.items()}
    optimizer = make_optimizer(config)
    abstract = jax.eval_shape(lambda: init_state(config, optimizer=optimizer))
    errors: list[str] = []
    known: set[str] = set()
    trees = {}
    for part, entries in _entries(config).items():
        tree, entries = getattr(abstract, part), list(entries)
        tree = tree._asdict() if isinstance(tree, Codebook) else tree
        known |= {naming(entry.name).name for entry in entries}
        trees[part] = _fill(tree, entries, tensors, errors, naming)
    for name in sorted(set(tensors) - known):
        close = difflib.get_close_matches(name, known, n=1)
        errors.append(f"  {name}: unknown" + (f"; the nearest name is {close[0]}" if close else ""))
    if errors:
        title = f"{source} tensors do not fit the configuration, or are damaged:"
        raise UserError("\n".join([title, *errors]))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trees["params"],
        teacher_params=trees["teacher_params"],
        opt_state=optimizer.init(trees["params"]),
        codebook=Codebook(**trees["codebook"]) if trees["codebook"] else None,
    )


def add_recipe(config: ml_collections.ConfigDict, cfg: Mapping[str, Any]) -> list[str]:
    """Copies the recipe of a fairseq configuration into ours; returns the fields that it has.

    `config` is unparsed; `cfg` is fairseq's, with sections, or its older flat `args`.
    """
    fields = dict(cfg)
    for section in ("optimization", "optimizer", "lr_scheduler", "common"):
        fields |= cfg[section] if isinstance(cfg.get(section), dict) else {}
    rate, steps = fields.get("lr"), fields.get("max_update")
    values = {"num_steps": steps, "seed": fields.get("seed")}
    values["optimizer.learning_rate"] = rate[0] if isinstance(rate, list) and rate else rate
    values["optimizer.eps"] = fields.get("adam_eps")
    values |= {f"optimizer.{name}": fields.get(name) for name in ("weight_decay", "clip_norm")}
    for whole, names, unit in (
        ("adam_betas", ("b1", "b2"), 1.0),
        ("phase_ratio", ("warmup_steps", "hold_steps", "decay_steps"), steps),
    ):
        parts = fields.get(whole)
        parts = ast.literal_eval(parts) if isinstance(parts, str) else parts
        if isinstance(parts, list | tuple) and len(parts) == len(names) and _number(unit):
            scaled = (part * unit for part in parts)
            values |= {f"optimizer.{n}": v for n, v in zip(names, scaled, strict=True)}
    taken = []
    for field, value in values.items():
        *section, name = field.split(".")
        place = config[section[0]] if section else config
        if _number(value):
            place[name] = round(value) if isinstance(place[name], int) else float(value)
            taken.append(field)
    return taken


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def fields_of_config(config: Any) -> dict[str, Any]:
    """The inverse of `config_from_fields`: fairseq's model fields, plain values."""
    fields: dict[str, Any] = {"_name": "dinosr", **_FIXED}
    for name, ours in _FIELDS.items():
        section, field = ours.split(".")
        fields[name] = config[section][field]
    fields["conv_feature_layers"] = repr([tuple(layer) for layer in config.model.conv_layers])
    shared = config.teacher.scope == "encoder"
    return fields | {"ema_transformer_only": shared, "ema_layers_only": shared}


def from_state(state: Any, *, config: Any, naming: Naming = Place) -> dict[str, np.ndarray]:
    """The inverse of `to_state`: name -> float32 array; step and optimizer stay behind."""
    tensors: dict[str, np.ndarray] = {}
    thirds: dict[str, list[np.ndarray]] = {}
    for part, entries in _entries(config).items():
        tree = getattr(state, part)
        tree = jax.device_get(tree._asdict() if isinstance(tree, Codebook) else tree)
        for entry in entries:
            value = _leaf(tree, entry.path)
            value = value if entry.index is None else value[entry.index]
            axes = _AXES[entry.kind]
            value = np.ascontiguousarray(np.transpose(value, axes) if axes else value)
            name, third = naming(entry.name)
            if third is None:
                tensors[name] = value
            else:
                thirds.setdefault(name, [value] * 3)[third] = value
    return tensors | {name: np.concatenate(values) for name, values in thirds.items()}


def not_finite(value: Any) -> str:
    """How many numbers of an array are not finite, '' where all are."""
    bad = value.size - int(np.isfinite(value).sum())
    return f"{bad:,} of {value.size:,} numbers are NaN or infinite" if bad else ""


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _fill(
    abstract: Any,
    entries: list[Entry],
    tensors: Mapping[str, Any],
    errors: list[str],
    naming: Naming,
) -> Any:
    """Puts tensors into the places of a parameter tree; appends what does not fit to `errors`."""
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    for entry in entries:
        leaf = _leaf(tree, entry.path)
        place = leaf if entry.index is None else leaf[entry.index]
        axes = _AXES[entry.kind]
        shape = tuple(place.shape[axis] for axis in axes) if axes else place.shape
        name, third = naming(entry.name)
        expected = shape if third is None else (3 * shape[0], *shape[1:])
        value = np.asarray(tensors[name]) if name in tensors else None
        if value is None:
            error = f"  {name}: missing, expected shape {list(expected)}"
        elif value.shape != expected:
            error = f"  {name}: found shape {list(value.shape)}, expected {list(expected)}"
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            error = f"  {name}: found {value.dtype}, expected floating point"
        else:
            if third is not None:
                value = value[third * shape[0] : (third + 1) * shape[0]]
            value = np.asarray(value, np.float32)
            place[...] = np.transpose(value, axes) if axes else value
            if not (wrong := not_finite(value)):
                continue
            error = f"  {name}: {wrong}"
        if error not in errors:
            errors.append(error)
    # zeros that nothing was written to take no memory; a copy of them would
    return tree if errors else jax.tree.map(jnp.asarray, tree)
