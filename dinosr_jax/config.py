"""The check of a configuration: the fields of `recipes`, of their types, in their ranges."""

import ast
import difflib
import json
import math
import os
import runpy
from collections.abc import Callable, Iterable
from typing import Any

import ml_collections

from dinosr_jax.files import LOCAL, is_url
from dinosr_jax.recipes import published_recipe

# Fields that came after the first runs: a configuration without them gets the published values.
_LATER = (
    "config.guard", "config.data.alignment", "config.task", "config.init", "config.ctc",
    "config.data.eval_data_dir", "config.data.eval_dataset", "config.model.front_end",
    "config.codebook.init_scale",
)  # fmt: skip


def parse(config: Any) -> ml_collections.ConfigDict:
    """Checks a configuration and freezes it.

    Args:
      config: ConfigDict or nested dict, with exactly the fields of `published_recipe`; those that
        the configurations of older runs lack may be missing.

    Returns:
      Frozen ConfigDict with tuples for lists and floats where floats are expected.

    Raises:
      ValueError: A field is unknown, missing, of the wrong type or out of range; all of them are
        named.
    """
    errors: list[str] = []
    raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    raw = complete(raw) if isinstance(raw, dict) else raw
    values = _conform(raw, published_recipe().to_dict(), "config", errors)
    if not errors:
        _check_values(ml_collections.ConfigDict(values), errors)
    if errors:
        raise ValueError("\n".join(["the configuration has errors:", *errors]))
    return ml_collections.FrozenConfigDict(values)


def complete(values: dict) -> dict:
    """A nested dict of an older run, with the fields that came later; what else it lacks, lacks."""
    values = dict(values)
    for name in _LATER:
        *rooms, field = name.split(".")[1:]
        room, default = values, published_recipe().to_dict()
        for part in rooms:
            if not isinstance(room.get(part), dict):
                break
            room[part] = dict(room[part])
            room, default = room[part], default[part]
        else:
            room.setdefault(field, default[field])
    return values


def held_out(data: ml_collections.FrozenConfigDict) -> ml_collections.FrozenConfigDict:
    """The `data` part of a parsed configuration with the folder and dataset of its `eval_split`."""
    if not data.eval_data_dir:
        return data
    where = {"data_dir": data.eval_data_dir, "dataset": data.eval_dataset}
    return ml_collections.FrozenConfigDict(data.to_dict() | where)


def to_text(config: Any) -> str:
    """A resolved configuration as JSON text, one field a line, sorted."""
    return json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True)


def differences(old: dict, new: dict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields in which two configurations (nested dicts) differ: name -> (old, new)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{name}.")
        elif _tuples(a) != _tuples(b):
            found[prefix + name] = (a, b)
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _conform(found: Any, expected: Any, name: str, errors: list[str]) -> Any:
    """Returns `found` in the types of `expected`; appends what does not fit to `errors`."""
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            errors.append(f"  {name}: found {found!r}, expected the fields {', '.join(expected)}")
            return found
        for field in found.keys() - expected.keys():
            close = difflib.get_close_matches(str(field), expected, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(expected)}"
            errors.append(f"  {name}.{field}: unknown field; {hint}")
        for field in expected.keys() - found.keys():
            errors.append(f"  {name}.{field}: missing; the published value is {expected[field]!r}")
        common = [field for field in expected if field in found]
        return {f: _conform(found[f], expected[f], f"{name}.{f}", errors) for f in common}
    if isinstance(expected, float) and isinstance(found, int) and not isinstance(found, bool):
        return float(found)
    if isinstance(expected, tuple) and isinstance(found, list | tuple):
        return _tuples(found)
    if type(found) is not type(expected):
        kind = type(expected).__name__
        errors.append(f"  {name}: found {found!r} ({type(found).__name__}), expected {kind}")
    return found


_CHOICES = {
    "task": ("pretrain", "ctc"),
    "compute_dtype": ("float32", "bfloat16"),
    "model.front_end": ("conv", "mfcc"),
    "model.padding_mode": ("zero", "fairseq"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("xla", "cudnn"),
    "teacher.scope": ("encoder", "full"),
    "teacher.init": ("copy", "reinit"),
    "guard.action": ("warn", "stop"),
    "ctc.network": ("student", "teacher"),
}
_PATHS = "workdir init data.data_dir data.eval_data_dir data.alignment ctc.lexicon ctc.vocabulary"


def _check_values(c: ml_collections.ConfigDict, errors: list[str]) -> None:
    """Appends every field that is out of range, or that does not fit another, to `errors`."""

    def need(holds: bool, field: str, found: Any, expected: str) -> None:
        if not holds:
            errors.append(f"  config.{field}: found {found!r}, expected {expected}")

    m = c.model
    positive = """num_steps log_steps eval_steps eval_batches checkpoint_steps keep_checkpoints
        model.num_layers model.width model.ffn_dim model.num_heads model.pos_conv_width
        model.pos_conv_depth model.pos_conv_groups model.num_codebooks model.codebook_size
        optimizer.accumulation_steps teacher.freeze_step teacher.freeze_feature_encoder_step
        codebook.init_scale mask.length data.min_seconds data.max_batch_seconds data.max_rungs
        data.batch_multiple data.num_workers data.prefetch_batches guard.patience_steps
        ctc.channel_mask_length"""
    not_negative = """seed keep_every_steps codebook.decay_steps mask.min_spans
        optimizer.learning_rate optimizer.warmup_steps optimizer.hold_steps optimizer.decay_steps
        optimizer.eps optimizer.weight_decay optimizer.clip_norm teacher.decay_steps
        guard.after_steps guard.min_target_std guard.min_feature_std ctc.freeze_steps
        ctc.eval_after_steps"""
    shares = """model.dropout model.attention_dropout model.activation_dropout model.layerdrop
        optimizer.b1 optimizer.b2"""
    fractions = """teacher.decay teacher.end_decay codebook.decay codebook.end_decay mask.prob
        optimizer.init_scale optimizer.final_scale data.max_ladder_loss
        guard.min_target_perplexity guard.min_codeword_use ctc.channel_mask_prob"""
    value = lambda field: _nested(c, field)
    for axis, size in c.mesh.items():
        need(size == -1 or size > 0, f"mesh.{axis}", size, "-1, or more than 0")
    fills = [axis for axis, size in c.mesh.items() if size == -1]
    need(len(fills) < 2, "mesh", fills, "one axis of -1 at most")
    for field in positive.split():
        need(0 < value(field) < math.inf, field, value(field), "more than 0")
    for field in not_negative.split():
        need(0 <= value(field) < math.inf, field, value(field), "0 or more")
    for field in shares.split():
        need(0 <= value(field) < 1, field, value(field), "at least 0 and less than 1")
    for field in fractions.split():
        need(0 <= value(field) <= 1, field, value(field), "0 to 1")
    for field, allowed in _CHOICES.items():
        need(value(field) in allowed, field, value(field), "one of " + ", ".join(allowed))
    shape = all(isinstance(layer, tuple) and len(layer) == 3 for layer in m.conv_layers)
    numbers = shape and all(isinstance(n, int) and n > 0 for layer in m.conv_layers for n in layer)
    triples = "(channels, kernel, stride) of each convolution, all more than 0"
    need(bool(m.conv_layers) and numbers, "model.conv_layers", m.conv_layers, triples)
    if not errors:
        _check_together(c, need)


def _check_together(c: ml_collections.ConfigDict, need: Callable[..., None]) -> None:
    """Fields that must fit each other; `need` as in `_check_values`."""
    m, d = c.model, c.data
    for field in _PATHS.split():
        need(not is_url(_nested(c, field)), field, _nested(c, field), LOCAL)
    need(m.width % m.num_heads == 0, "model.width", m.width, f"a multiple of {m.num_heads} heads")
    half = c.compute_dtype == "bfloat16" or m.attention == "xla"
    need(half, "model.attention", m.attention, "'xla', or compute_dtype 'bfloat16' for cuDNN")
    groups = f"a multiple of the {m.pos_conv_groups} groups of the positional convolution"
    need(m.width % m.pos_conv_groups == 0, "model.width", m.width, groups)
    cepstra = "one (coefficients of 40 at most, window, hop) where front_end is 'mfcc'"
    fits = m.front_end == "conv" or (len(m.conv_layers) == 1 and m.conv_layers[0][0] <= 40)
    need(fits, "model.conv_layers", m.conv_layers, cepstra)
    layers = f"at most the {m.num_layers} layers"
    need(m.num_codebooks <= m.num_layers, "model.num_codebooks", m.num_codebooks, layers)
    longer = f"at least min_seconds = {d.min_seconds}"
    need(d.max_seconds >= d.min_seconds, "data.max_seconds", d.max_seconds, longer)
    both = "both, or neither"
    where = (d.eval_data_dir, d.eval_dataset)
    need(all(where) or not any(where), "data.eval_data_dir and eval_dataset", where, both)
    pretrain = (
        "'' where task is 'pretrain' (to go on from a checkpoint: python -m dinosr_jax import)"
    )
    need(c.task == "ctc" or not c.init, "init", c.init, pretrain)
    texts = all(isinstance(symbol, str) for symbol in c.ctc.symbols)
    need(texts, "ctc.symbols", c.ctc.symbols, "texts (filled in when a run starts)")


def read_file(path: str | os.PathLike, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A configuration file, changed by flags, as a checked nested dict.

    Args:
      path: A Python file with `get_config()`.
      overrides: Flags as main.py takes them, --config.FIELD=VALUE.

    Returns:
      All fields.

    Raises:
      ValueError: A flag or a field is not what was expected.
    """
    values = runpy.run_path(path)["get_config"]().to_dict()
    for override in overrides:
        name, found, text = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or not found:
            raise ValueError(f"found {override!r}, expected --config.FIELD=VALUE")
        *parents, field = name.split(".")
        part = values
        for parent in parents:
            part = part.setdefault(parent, {})
            if not isinstance(part, dict):
                raise ValueError(f"{override}: config.{name}: unknown field")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        part[field] = text if isinstance(part.get(field), str) else value
    parse(values)
    return values


def _nested(config: ml_collections.ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config
