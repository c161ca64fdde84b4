"""The check of a configuration: the fields of `recipes`, of their types, in their ranges."""

import ast
import difflib
import json
import os
import runpy
from collections.abc import Callable, Iterable
from typing import Any

import ml_collections

from dinosr_jax.recipes import FIELDS, published_recipe


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
    """A nested dict of an older run, with the fields that came later as that run had them."""
    values = dict(values)
    for name, field in FIELDS.items():
        if not field.came_later:
            continue
        *section, last = name.split(".")
        fields = values
        if section and section[0] not in values and _all_came_later(section[0]):
            values[section[0]] = {}
        if section and isinstance(values.get(section[0]), dict):
            fields = values[section[0]] = dict(values[section[0]])
        elif section:
            continue
        fields.setdefault(last, field.older)
    return values


def _all_came_later(section: str) -> bool:
    """Whether there are runs without a whole section."""
    return all(f.came_later for name, f in FIELDS.items() if name.startswith(f"{section}."))


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


def _check_values(c: ml_collections.ConfigDict, errors: list[str]) -> None:
    """Appends every field that is out of range, or that does not fit another, to `errors`."""

    def need(holds: bool, field: str, found: Any, expected: str) -> None:
        if not holds:
            errors.append(f"  config.{field}: found {found!r}, expected {expected}")

    for name, field in FIELDS.items():
        value = _nested(c, name)
        need(field.check.holds(value), name, value, field.check.expected)
    if not errors:
        _check_together(c, need)


def _check_together(c: ml_collections.ConfigDict, need: Callable[..., None]) -> None:
    """Fields that must fit each other; `need` as in `_check_values`."""
    m, d = c.model, c.data
    fills = [axis for axis, size in c.mesh.items() if size == -1]
    need(len(fills) < 2, "mesh", fills, "one axis of -1 at most")
    need(m.width % m.num_heads == 0, "model.width", m.width, f"a multiple of {m.num_heads} heads")
    half = c.compute_dtype == "bfloat16" or m.attention != "cudnn"
    need(half, "model.attention", m.attention, "'auto', or compute_dtype 'bfloat16' for cuDNN")
    groups = f"a multiple of the {m.pos_conv_groups} groups of the positional convolution"
    need(m.width % m.pos_conv_groups == 0, "model.width", m.width, groups)
    cepstra = "one (coefficients of 40 at most, window, hop) where front_end is 'mfcc'"
    fits = m.front_end == "conv" or (len(m.conv_layers) == 1 and m.conv_layers[0][0] <= 40)
    need(fits, "model.conv_layers", m.conv_layers, cepstra)
    layers = f"at most the {m.num_layers} layers"
    need(m.num_codebooks <= m.num_layers, "model.num_codebooks", m.num_codebooks, layers)
    drops = c.task == "pretrain" and c.objective == "spidr" and m.layerdrop > 0
    every = "0 where objective is 'spidr', whose heads read every top layer"
    need(not drops, "model.layerdrop", m.layerdrop, every)
    longer = f"at least min_seconds = {d.min_seconds}"
    need(d.max_seconds >= d.min_seconds, "data.max_seconds", d.max_seconds, longer)
    both = "both, or neither"
    where = (d.eval_data_dir, d.eval_dataset)
    need(all(where) or not any(where), "data.eval_data_dir and eval_dataset", where, both)
    of_mixture = "the dataset of eval_split where mixture names those of training"
    named = d.eval_data_dir or not (d.mixture and d.eval_split)
    need(bool(named), "data.eval_data_dir", d.eval_data_dir, of_mixture)
    one_set = "() where task is 'ctc'"
    need(c.task == "pretrain" or not d.mixture, "data.mixture", d.mixture, one_set)
    pretrain = (
        "'' where task is 'pretrain' (to go on from a checkpoint: python -m dinosr_jax import)"
    )
    need(c.task == "ctc" or not c.init, "init", c.init, pretrain)


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
