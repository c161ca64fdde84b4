"""What main.py does: opens what a configuration names, and trains."""

import json
from pathlib import Path
from typing import Any

from dinosr_jax.config import complete, held_out, parse
from dinosr_jax.files import refuse_url
from dinosr_jax.recipes import FIELDS


def run(config: Any, *, workdir: str | None) -> None:
    """Trains in a workdir (None: config.workdir); goes on where it stopped.

    Raises ValueError, OSError, RuntimeError: what a person should read of fields, files, data,
    training.
    """
    from dinosr_jax.training.processes import keep_compiled

    config = parse(config)
    refuse_url("--workdir", workdir or "")
    folder = Path(workdir or config.workdir)
    keep_compiled(folder / "compiled")
    if config.task == "ctc":
        _finetune(config, folder)
    else:
        _pretrain(config, folder)


def _pretrain(config: Any, workdir: Path) -> None:
    from dinosr_jax.data.batches.labelled import open_labelled
    from dinosr_jax.data.batches.mixture import open_mixture
    from dinosr_jax.data.batches.pipeline import open_split
    from dinosr_jax.model.feature_encoder import receptive_field
    from dinosr_jax.training.loop import train

    data, other = config.data, held_out(config.data)
    field, hop = receptive_field(config.model.conv_layers)
    how = {"field": field, "hop": hop}
    open_training = open_mixture if data.mixture else open_split
    train_data = open_training(data, split=data.train_split, seed=config.seed, **how)
    short = f"  {train_data.left_out} left out: under {data.min_seconds:g} s"
    _say(f"training data: {train_data.plan.summary()}\n{short}")
    eval_data = None
    if data.eval_split:
        eval_data = open_split(other, split=data.eval_split, seed=0, use="held out", **how)
        _say(f"held-out data: {eval_data.plan.summary()}")
    where = {"train_data": train_data, "eval_data": eval_data}
    train(config, workdir=workdir, phone_data=open_labelled(other), **where)


def _finetune(config: Any, workdir: Path) -> None:
    from dinosr_jax.data.batches.transcribed import open_transcribed
    from dinosr_jax.data.vocabulary import Vocabulary
    from dinosr_jax.model.feature_encoder import receptive_field
    from dinosr_jax.training.loop import train

    config, initial = resolve(config, workdir)
    data, other = config.data, held_out(config.data)
    field, hop = receptive_field(config.model.conv_layers)
    vocabulary = Vocabulary(tuple(config.ctc.symbols))
    how = {"vocabulary": vocabulary, "field": field, "hop": hop}
    train_data = open_transcribed(data, config.ctc, split=data.train_split, seed=config.seed, **how)
    _say(f"training data: {train_data.summary()}")
    _say(f"  {len(vocabulary.symbols)} symbols: {' '.join(vocabulary.symbols)}")
    eval_data = None
    if data.eval_split:
        how |= {"seed": 0, "use": "held out"}
        eval_data = open_transcribed(other, config.ctc, split=data.eval_split, **how)
        _say(f"held-out data: {eval_data.summary()}")
    where = {"train_data": train_data, "eval_data": eval_data}
    train(config, workdir=workdir, initial=initial, **where)


def resolve(config: Any, workdir: Path) -> tuple[Any, dict[str, Any] | None]:
    """The configuration and the parameters of a fine-tuning, with what it takes from elsewhere.

    That is the structure of the network of `init`, and the symbols of the vocabulary. The
    parameters are None where they are random or there already. Raises ValueError where the
    vocabulary is not to be found, or given symbols are others; CheckpointError, InteropError where
    `init` cannot be read.
    """
    from dinosr_jax.data.batches.transcribed import find_vocabulary

    started, kept = workdir / "config.json", (workdir / "checkpoints").glob("*")
    if started.is_file() and any(path.name.isdigit() for path in kept):  # others are unfinished
        before = complete(json.loads(started.read_text()))
        symbols = tuple(before["ctc"]["symbols"])
        if config.ctc.vocabulary != before["ctc"]["vocabulary"]:  # a file that moved
            named = find_vocabulary(config.data, config.ctc).symbols
            if tuple(named) != symbols:
                raise ValueError(
                    f"config.ctc.vocabulary: {config.ctc.vocabulary!r} has {len(named)} symbols, "
                    f"expected the {len(symbols)} that the run in {workdir} learns; give it "
                    f"{before['ctc']['vocabulary']!r}, or choose another --workdir"
                )
        return _filled(config, before["model"], symbols), None
    symbols = config.ctc.symbols or find_vocabulary(config.data, config.ctc).symbols
    if not config.init:
        _say("config.init is empty: fine-tuning from random parameters")
        return _filled(config, config.model.to_dict(), symbols), None
    from dinosr_jax.interop.runs import read_any

    initial = read_any(Path(config.init).expanduser())
    if initial.config.objective != config.objective:
        raise ValueError(
            f"config.objective: found {config.objective!r}, but {config.init} was trained with "
            f"{initial.config.objective!r}; say --config.objective={initial.config.objective}"
        )
    parts = dict(initial.state.params)
    if config.ctc.network == "teacher":
        if not initial.state.teacher_params:
            raise ValueError(
                f"config.ctc.network='teacher': {config.init} has no teacher; expected 'student'"
            )
        parts |= initial.state.teacher_params
    parts.pop("heads", None)
    if tuple(initial.config.ctc.symbols) != tuple(symbols):
        parts.pop("output", None)
    filled = _filled(config, initial.config.model.to_dict(), symbols)
    _say(
        f"fine-tuning the {config.ctc.network} of {config.init} after {initial.step} updates: "
        f"{filled.model.num_layers} layers of width {filled.model.width}"
    )
    return filled, parts


def _filled(config: Any, model: dict[str, Any], symbols: Any) -> Any:
    values = config.to_dict()
    network = [name for name, field in FIELDS.items() if field.fixes == "network"]
    values["model"] |= {last: model[last] for last in (name.split(".")[1] for name in network)}
    values["ctc"]["symbols"] = tuple(symbols)
    return parse(values)


def _say(text: str) -> None:
    from dinosr_jax.training.processes import is_first

    if is_first():
        print(text, flush=True)
