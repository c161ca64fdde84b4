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
from dinosr_jax.errors import UserError
from dinosr_jax.interop import (
    fairseq,
    fairseq_files,
    huggingface,
    naming,
    recognisers,
    s3prl,
    spidr,
    tokenizers,
)
from dinosr_jax.interop.shapes import infer_config
from dinosr_jax.interop.torch_file.reader import Tensor, TorchFile, plain
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import TrainState, init_state

# what a checkpoint with absurd contents may raise on its way
_DAMAGE = (ValueError, TypeError, OSError, LookupError, AttributeError, ArithmeticError)
_DAMAGE += (MemoryError, RecursionError, SyntaxError)
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")


class InteropError(UserError):
    """A checkpoint cannot be read."""


class Imported(NamedTuple):
    """A checkpoint in the terms of this project."""

    config: Any  # parsed
    state: TrainState  # float32, with a fresh optimizer; its step is `step`
    step: int  # finished updates
    source: str  # name of the format
    notes: list[str]  # messages: what was inferred, what was not used
    data: dict[str, Any]  # identity of the training data where known, else {}
    num_tensors: int = 0  # that were used


class Choices(NamedTuple):
    """Values for what a checkpoint may leave open."""

    heads: int | None = None
    num_codebooks: int | None = None
    codebook_size: int | None = None
    seed: int = 0
    objective: str | None = None
    symbols: tuple[str, ...] | None = None  # of a fine-tuned fairseq checkpoint


def read_checkpoint(path: str | Path, *, choices: Choices | None = None) -> Imported:
    """Reads a checkpoint of any known format.

    Args:
      path: fairseq's or spidr's file, a folder of Hugging Face's, or one that we exported.
      choices: Values for what the checkpoint does not have.

    Returns:
      The student alone (Hugging Face) gets a teacher that is its copy, and fresh heads and
      codebooks; there is a note about it.

    Raises:
      InteropError: The format is not known, or the checkpoint is damaged, refused, or does not fit
        its own configuration; all tensors that do not are named.
    """
    path, choices = Path(path), choices or Choices()
    try:
        if not path.exists():
            raise InteropError(f"{path}: no such file or folder")
        imported = _read_folder(path, choices) if path.is_dir() else _read_file(path, choices)
        _check_vocabulary(imported, choices)
        objective = imported.config.objective
        if choices.objective not in (None, objective):
            raise InteropError(
                f"--objective: found {choices.objective!r}, but {path} is a checkpoint of "
                f"config.objective {objective!r}; leave it out"
            )
        return imported
    except InteropError:
        raise
    except _DAMAGE as error:
        text = str(error) or type(error).__name__
        raise InteropError(text if str(path) in text else f"{path}: {text}") from None


def _check_vocabulary(imported: Imported, choices: Choices) -> None:
    """Raises where a dictionary was given that the checkpoint has no use for."""
    symbols = tuple(imported.config.ctc.symbols)
    if choices.symbols is not None and tuple(choices.symbols) != symbols:
        wrong = "says itself which symbols it has, and they are others" if symbols else "has none"
        raise InteropError(
            f"--vocabulary: found {len(choices.symbols)} symbols, but this {imported.source} "
            f"checkpoint {wrong}; leave it out"
        )


def _read_file(path: Path, choices: Choices) -> Imported:
    with TorchFile(path) as file:
        content = file.content
        if s3prl.is_content(content):
            raise InteropError(
                f"{path}: a checkpoint for s3prl, which holds the student's layers alone; "
                "expected the run that it was written of, or another export of it"
            )
        whole = isinstance(content, dict) and "model" in content
        model = content["model"] if whole else content
        if not isinstance(model, dict) or not model:
            raise InteropError(f"{path}: holds no mapping `model` of names to tensors")
        beside = content.get("dinosr_jax_teacher") if whole else None  # spidr has no place for it
        tensors, others = _tensors(file, model, beside if isinstance(beside, dict) else {})
        rest = {k: plain(v) for k, v in content.items() if k != "model"} if whole else {}
    if beside is not None:
        del rest["dinosr_jax_teacher"]
    notes = [f"not used: {name}, which is no tensor" for name in others]
    recogniser = any(name.startswith(recognisers.FAIRSEQ_PREFIX) for name in tensors)
    if recogniser or "mask_emb" in tensors:
        return _from_fairseq(tensors, rest, choices, notes, recogniser=recogniser)
    if "mask_embedding" in tensors:
        return _from_spidr(tensors, rest, choices, notes, path)
    some = ", ".join(list(tensors)[:3])
    raise InteropError(
        f"{path}: not a checkpoint of DinoSR: expected fairseq's mask_emb or spidr's "
        f"mask_embedding among its tensors, found {some or 'no tensor'}, ..."
    )


def _tensors(
    file: TorchFile, model: dict[Any, Any], beside: dict[Any, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays by name, without the prefixes of wrappers; and the names of what is no tensor."""
    named: list[tuple[str, Any]] = []
    for name, value in [*model.items(), *beside.items()]:
        name = _PREFIX.sub("", str(name))
        if name == "_ema" and isinstance(value, dict):
            named += [(f"_ema.{_PREFIX.sub('', str(k))}", v) for k, v in value.items()]
        else:
            named.append((name, value))
    tensors: dict[str, np.ndarray] = {}
    for name, value in named:
        if name in tensors:
            raise InteropError(f"{file.path}: {name} is there twice, with and without a prefix")
        if isinstance(value, Tensor):
            tensors[name] = file.array(value)
    return tensors, [name for name, value in named if not isinstance(value, Tensor)]


def _unused(rest: dict[str, Any], *used: str) -> list[str]:
    """One note for all entries of a file that nothing was taken of."""
    names = [str(name) for name in rest if name not in used]
    return [f"not used: {', '.join(names)}"] if names else []


def _from_fairseq(
    tensors: dict[str, np.ndarray],
    rest: dict[str, Any],
    choices: Choices,
    notes: list[str],
    *,
    recogniser: bool,
) -> Imported:
    source = "cfg" if rest.get("cfg") else "args"
    whole = rest.get(source)
    whole = whole if isinstance(whole, dict) else {}
    ours = _saved(rest.get("extra_state"))
    config = _own_config(ours)
    if config is None and recogniser:
        given = {"heads": choices.heads, "symbols": choices.symbols, "notes": notes}
        config = recognisers.fairseq_config(tensors, whole, **given)
    elif config is None:
        fields = whole.get("model") if isinstance(whole.get("model"), dict) else whole
        config = infer_config(tensors, lambda name: name, choices.heads, notes, fields=fields)
        if {"encoder_layers", "conv_pos"} & fields.keys():
            notes.append(f"network: as its {source} says")
        taken = fairseq.add_recipe(config, whole)
        recipe = f"{', '.join(taken)} of its {source}" if taken else "published"
        notes.append(f"recipe: {recipe}")
    if not recogniser:
        full = "_ema.encoder.layer_norm.weight" in tensors
        config.teacher.scope = "full" if full else "encoder"
    tensors, unused = (recognisers if recogniser else fairseq_files).used_tensors(tensors)
    places = recognisers.fairseq_place if recogniser else fairseq.Place
    state = _state(tensors, config, naming=places)
    notes += [f"not used: {name}" for name in unused]
    place, step = fairseq_files.finished_updates(rest)
    if step is None:
        notes.append("step: the checkpoint has none; 0 is taken (--step=N says another)")
    used = [place, source if whole else "", "extra_state" if ours else ""]
    notes += _unused({k: v for k, v in rest.items() if v is not None}, *used)
    return _imported(config, state, step or 0, "fairseq", notes, ours, len(tensors))


def _saved(extra: Any) -> dict[str, Any]:
    """What `export` wrote into a checkpoint beside what is the format's own."""
    ours = extra.get("dinosr_jax") if isinstance(extra, dict) else None
    return ours if isinstance(ours, dict) else {}


def _own_config(ours: Mapping[str, Any]) -> Any:
    """The configuration that `export` wrote, unparsed; None where there is none."""
    text = ours.get("config")
    return ml_collections.ConfigDict(json.loads(text)) if text else None


def _from_spidr(
    tensors: dict[str, np.ndarray],
    rest: dict[str, Any],
    choices: Choices,
    notes: list[str],
    path: Path,
) -> Imported:
    ours = _saved(rest)
    step = tensors.pop("current_step", None)
    tensors, added = spidr.add_missing_biases(tensors, notes)
    config = _own_config(ours)
    if config is None:
        given = {"heads": choices.heads, "objective": choices.objective}
        config = spidr.infer(tensors, checkpoint=path, notes=notes, **given)
        config.model.qkv_bias = not added
    shared = config.teacher.scope == "encoder"
    places = naming.spidr_of_shared_teacher if shared else naming.spidr
    state = _state(tensors, config, naming=places, source="spidr")
    number = 0
    if step is None:
        notes.append("step: the checkpoint has no current_step; 0 is taken (--step=N)")
    elif step.size == 1 and step.dtype.kind in "iu" and 0 <= step.item() < 2**31:
        number = int(step.item())
    else:
        raise UserError(
            f"current_step: found {step.dtype}{list(step.shape)}, expected one number from 0"
        )
    notes += _unused(rest, "dinosr_jax" if ours else "")
    return _imported(config, state, number, "spidr", notes, ours, len(tensors) - added)


def _state(tensors: dict[str, np.ndarray], config: Any, **kwargs: Any) -> TrainState:
    """As `fairseq.to_state`; a configuration beyond all tensors is refused before it is built."""
    config = parse(config)
    model, numbers = config.model, sum(value.size for value in tensors.values())
    limits = dict.fromkeys(("num_layers", "num_codebooks", "pos_conv_depth"), len(tensors))
    limits |= dict.fromkeys(("codebook_size", "width", "ffn_dim"), numbers)
    absurd = [f"{name} {model[name]}" for name in limits if model[name] > limits[name]]
    if absurd:
        raise UserError(
            f"its configuration says {', '.join(absurd)}; it holds {len(tensors)} tensors with "
            f"{numbers:,} numbers"
        )
    return fairseq.to_state(tensors, config=config, **kwargs)


def _read_folder(path: Path, choices: Choices) -> Imported:
    files = list(path.glob("*.pt"))
    theirs = (path / "config.json").is_file() and (not files or huggingface.holds_weights(path))
    if not theirs:
        if len(files) == 1:  # as `export` writes fairseq's and spidr's
            return _read_file(files[0], choices)
        raise InteropError(f"{path}: no checkpoint: expected a file, config.json, or one .pt file")
    folder = huggingface.read_folder(path)
    folder, notes = huggingface.with_mask_embedding(folder)
    if "lm_head.weight" in folder.tensors and (path / "vocab.json").is_file():
        return _recogniser_of_huggingface(path, folder, notes)
    config = _own_config(folder.metadata)
    if config is None:
        config = huggingface.config_from_fields(folder.fields)
        config.model.num_codebooks = choices.num_codebooks or config.model.num_codebooks
        config.model.codebook_size = choices.codebook_size or config.model.codebook_size
        config.seed = choices.seed
        config.objective = choices.objective or config.objective
        if config.objective == "spidr":
            config.model.layerdrop = 0.0
    config = parse(config)
    places = huggingface.naming_of(folder, config=config)
    tensors, unused = huggingface.used_tensors(folder)
    notes += [f"not used: {name}" for name in unused]
    if "lm_head.weight" in unused:
        notes.append("without vocab.json it is no recogniser: nothing says what lm_head's rows are")
    if folder.side:
        return _of_folder(folder, tensors, config, places, notes, len(tensors))
    notes.append(
        "STUDENT ONLY: the teacher is its copy; heads and codebooks are fresh, from seed "
        f"{config.seed}: units mean nothing before it is trained on"
    )
    whole = _complete(tensors, config, places)
    imported = _of_folder(folder, whole, config, places, notes, len(tensors))
    return imported._replace(data=imported.data | {"fresh": True})


def _recogniser_of_huggingface(
    path: Path, folder: huggingface.Folder, notes: list[str]
) -> Imported:
    notes += [f"not used: {name}, which is no tensor" for name in folder.others]
    tensors = folder.tensors
    size = tensors["lm_head.weight"].shape[:1]
    tokenizer = tokenizers.read(path, folder.fields, size=size[0] if size else 0)
    config = _own_config(folder.metadata)
    if config is None:
        network = huggingface.config_from_fields(folder.fields)
        config = recognisers.recogniser(network, tokenizer.symbols)
        tensors = tokenizers.reorder(tensors, tokenizer.rows)
        notes += tokenizer.notes
        if huggingface.not_normalised(path):
            notes.append(recognisers.NOT_NORMALISED)
    elif tuple(config.ctc.symbols) != tokenizer.symbols:
        where = f"{path}: vocab.json and {huggingface.SIDE_FILE}"
        raise UserError(f"{where} say other symbols; remove the latter if it is out of date")
    tensors |= {f"{huggingface.SIDE_FILE}: {name}": value for name, value in folder.side.items()}
    places = recognisers.huggingface_place
    return _of_folder(folder, tensors, config, places, notes, len(tensors))


def _of_folder(
    folder: huggingface.Folder,
    tensors: dict[str, np.ndarray],
    config: Any,
    places: fairseq.Naming,
    notes: list[str],
    count: int,
) -> Imported:
    state = _state(tensors, config, naming=places, source="Hugging Face")
    step, saved = int(folder.metadata.get("step", 0)), {"data": folder.metadata.get("data")}
    return _imported(config, state, step, "huggingface", notes, saved, count)


def _complete(
    tensors: dict[str, np.ndarray], config: Any, places: fairseq.Naming
) -> dict[str, np.ndarray]:
    """Adds the teacher as a copy of the student, and fresh heads and codebooks."""
    fresh = jax.jit(lambda: init_state(config, optimizer=make_optimizer(config)))()
    added = {}
    for name, value in fairseq.from_state(fresh, config=config).items():
        if name.startswith("_ema."):
            # a student's tensor that does not fit is named by itself, not by its copy
            copied = tensors.get(places(f"encoder.{name[5:]}").name)
            fits = copied is not None and copied.shape == value.shape
            added[places(name).name] = copied if fits and copied.dtype.kind not in "iub" else value
        elif name.startswith(("heads.", "_codebook")):
            added[places(name).name] = value
    return tensors | added


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
    return Imported(parse(config), at_step(state, step), step, source, notes, data, count)


def at_step(state: TrainState, step: int) -> TrainState:
    """The state as after `step` updates: schedules of the fresh optimizer go on from there."""
    number = jnp.asarray(step, jnp.int32)
    count = lambda path, leaf: number if getattr(path[-1], "name", "") == "count" else leaf
    optimizer = jax.tree_util.tree_map_with_path(count, state.opt_state)
    return state.replace(step=number, opt_state=optimizer)
