"""Commands that compare a network with MFCC and with itself untrained."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.evaluation import command_text

_TASKS = ("units", "frames", "recognition")


_FILE = shared.LocalPath()
_over_corpus = shared.together(
    click.argument("checkpoint", type=_FILE),
    click.argument("data_dir", metavar="INPUT", type=_FILE),
    click.option("--train_split", default="train", show_default=True, help="To fit and learn."),
    click.option("--split", default="test", show_default=True, help="To test on."),
    click.option("--alignment", type=_FILE, help="Phones.  [default: those that INPUT carries]"),
    shared.prefix,
    shared.stress,
    click.option("--output", type=_FILE, help="Folder.  [default: RUN/evaluation]"),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True),
)
_memory = click.option(
    "--max_memory",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="GiB of features that are held; a part of the utterances is used where they take more.",
)


@click.command()
@_over_corpus
@click.option("--task", default=",".join(_TASKS), show_default=True, help="Some of them.")
@click.option(
    "--fit_minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Of --train_split, for k-means.  [default: 256 frames a cluster]",
)
@_memory
@click.pass_context
def run(context: click.Context, task: str, fit_minutes: float, **options: Any) -> None:
    """Compare a network with MFCC and with itself untrained: units, frames, recognition.

    CHECKPOINT as in `extract`; INPUT is a prepared dataset, of which some utterances have phones.
    Units are the codes of every codebook, and k-means with as many clusters on its layers, on MFCC
    with deltas and on the untrained network's layers; `frames` is a linear classifier of the phone
    in a frame, of every layer and of their weighted sum; `recognition` SUPERB's phone recognition.
    Written are units.json, frames.json, recognition.json, and an utterance to look at.
    """
    tasks = tuple(dict.fromkeys(task.split(",")))
    if unknown := set(tasks) - set(_TASKS):
        raise click.UsageError(
            f"--task: found {unknown.pop()!r}, expected some of {', '.join(_TASKS)}"
        )
    _compare(context, options, tasks=tasks, wish={"fit_minutes": fit_minutes})


@click.command("frames")
@_over_corpus
@click.option("--num_steps", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--batch_frames", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--learning_rate", type=float, default=1e-2, show_default=True)
@_memory
@click.pass_context
def frames_command(context: click.Context, **options: Any) -> None:
    """Accuracy of linear classifiers of the phone in a frame, by layer; MFCC, untrained network.

    CHECKPOINT and INPUT as in `run`. Tested on other speakers, where several are known.
    """
    from dinosr_jax.evaluation.probes import frame_classifier

    names = ("num_steps", "batch_frames", "learning_rate")
    settings = frame_classifier.ClassifierSettings(**{name: options.pop(name) for name in names})
    _compare(context, options, tasks=("frames",), wish={"of_frames": settings})


@click.command("recognition")
@_over_corpus
@click.option("--valid_split", default="", help="To choose on.  [default: 15 % of --train_split]")
@click.option(
    "--lexicon",
    type=shared.LocalPath(),
    help="Words and their phones: the transcripts are spelt with it, --alignment is not needed.",
)
@click.option(
    "--config",
    type=shared.LocalPath(exists=True),
    help="Recipe and splits: configs/evaluation/superb_pr.py; options that are given come first.",
)
@click.option("--num_steps", type=click.IntRange(min=1), default=400, show_default=True)
@click.option("--eval_steps", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--batch_size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--learning_rates", default="0.1,0.01,0.001", show_default=True)
@shared.features
@click.pass_context
def recognition_command(
    context: click.Context, config: Path | None, learning_rates: str, **options: Any
) -> None:
    """Phone error rate of SUPERB's phone recognition, on frozen features; MFCC, untrained network.

    CHECKPOINT and INPUT as in `run`.
    """
    from dinosr_jax.evaluation.probes import head_training

    options["learning_rates"] = learning_rates
    apply_recipe(context, options, config)
    names = ("num_steps", "eval_steps", "batch_size")
    settings = head_training.HeadSettings(
        learning_rates=parse_rates(options.pop("learning_rates")),
        seed=options["seed"],
        **{name: options.pop(name) for name in names},
    )
    _recognise(context, options, settings)


def _recognise(context: click.Context, options: dict[str, Any], settings: Any) -> None:
    """Phone recognition alone: features need not be held."""
    from dinosr_jax.evaluation import comparison
    from dinosr_jax.evaluation.probes import phone_recognition
    from dinosr_jax.evaluation.superb import systems

    output = options.pop("output") or evaluation_folder(options["checkpoint"])
    with following() as telling:
        trained, corpus = _open(options)
        rows = systems.evaluate(
            trained,
            comparison.to_recognise(corpus),
            phone_recognition.recognise,
            kind="recognition",
            output=output,
            command=command_text(context),
            wish=systems.TaskOptions(
                settings, int(options["max_memory"] * 2**30), options["cache"]
            ),
            telling=telling,
        )
    click.echo(f"{options['checkpoint']}, {trained.step} updates; {options['data_dir']}")
    click.echo(f"{systems.summary(rows, kind='recognition')}\n{output / 'recognition'}.json")


def apply_recipe(context: click.Context, options: dict[str, Any], config: Path | None) -> None:
    """Puts the fields of a recipe in place of options that were not given, as if they were."""
    import runpy

    if config is None:
        return
    made = runpy.run_path(config).get("get_config")
    if made is None:
        raise click.ClickException(f"{config}: expected a function get_config()")
    known = {option.name: option for option in context.command.params}
    for name, value in made().to_dict().items():
        if name not in options:
            raise click.ClickException(f"{config}: {name}: no option of this command")
        try:
            checked = known[name].type_cast_value(context, str(value))
        except click.BadParameter as error:
            raise click.ClickException(f"{config}: {name}: {error.message}") from None
        if context.get_parameter_source(name).name != "COMMANDLINE":
            options[name] = checked


def parse_rates(text: str) -> tuple[float, ...]:
    """Learning rates."""
    try:
        rates = tuple(float(rate) for rate in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise click.UsageError(
            f"--learning_rates: found {text!r}, expected numbers such as 0.01,0.001"
        )
    return rates


def _compare(
    context: click.Context, options: dict[str, Any], *, tasks: tuple[str, ...], wish: dict[str, Any]
) -> None:
    """Loads, compares, prints the table."""
    from dinosr_jax.evaluation import comparison, utterances

    output = options.pop("output") or evaluation_folder(options["checkpoint"])
    command = command_text(context)
    with following() as telling:
        trained, corpus = _open(options)
        found = comparison.compare(
            trained,
            corpus,
            output=output,
            command=command,
            wish=comparison.ComparisonOptions(
                tasks=tasks,
                seed=options["seed"],
                max_bytes=int(options["max_memory"] * 2**30),
                **wish,
            ),
            telling=telling,
        )
    told = f"{options['checkpoint']}, {trained.step} updates; {options['split']}: "
    click.echo(told + utterances.describe(corpus.test))
    chosen = _validated(options["checkpoint"], split=options["split"])
    table = comparison.summary(found, chosen)
    click.echo(f"{table}\n{output}: " + ", ".join(f"{t}.json" for t in found))


def _validated(checkpoint: Path, *, split: str) -> Any:
    """The layer that another split chose while a run trained; None where none is known."""
    from dinosr_jax.report import health, run_files

    try:
        chosen = health.validated(run_files.read_run(_run_of(checkpoint)))
    except run_files.ReportError:
        return None
    return chosen if chosen and chosen.split != split else None


def _open(options: dict[str, Any]) -> tuple[Any, Any]:
    """The network, and the corpus with its phones."""
    import logging

    from dinosr_jax.evaluation import utterances
    from dinosr_jax.evaluation.corpus import open_corpus
    from dinosr_jax.inference import pretrained

    logging.getLogger("absl").setLevel(logging.ERROR)
    named = {name: options.get(name, "") for name in ("train_split", "split", "valid_split")}
    if options["checkpoint"].exists():  # else `load` says so
        check_splits(options["data_dir"], named)
    trained = pretrained.load(options["checkpoint"])
    given = {name: options[name] for name in ("prefix", "stress")}
    splits = list(filter(None, named.values()))
    if lexicon := options.get("lexicon"):
        how = {"splits": splits, "lexicon": lexicon, "stress": options["stress"]}
        alignment = utterances.spell(options["data_dir"], **how)
    else:
        alignment = utterances.find_alignment(
            options["data_dir"], given=options["alignment"], **given
        )
    return trained, open_corpus(
        options["data_dir"],
        alignment,
        model=trained,
        train_split=options["train_split"],
        split=options["split"],
        valid_split=options.get("valid_split", ""),
    )


def check_splits(data_dir: Path, named: Mapping[str, str]) -> None:
    """Checks the splits that options name, before anything else is read; '' is none.

    Raises:
      ManifestError: A split is not there; the option is named.
    """
    from dinosr_jax.data import manifest

    for option, split in named.items():
        try:
            if split:
                manifest.check_split(data_dir, dataset=manifest.dataset_in(data_dir), split=split)
        except manifest.ManifestError as error:
            raise manifest.ManifestError(f"--{option}={split}: {error}") from None


def evaluation_folder(checkpoint: Path) -> Path:
    """RUN/evaluation of a run or of one of its steps."""
    run_ = _run_of(checkpoint)
    if not (run_ / "config.json").is_file():
        raise click.UsageError(f"{checkpoint} is no run of ours; name a folder with --output")
    return run_ / "evaluation"


def _run_of(checkpoint: Path) -> Path:
    """The run of a step; a run, or what else it is, as it is."""
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint


@contextlib.contextmanager
def following() -> Iterator[Any]:
    """Notices and progress; errors become one line."""
    from dinosr_jax.evaluation.comparison import Telling
    from dinosr_jax.progress import progress_bar

    shown = "{desc}{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    bar = progress_bar(bar_format=shown, desc="reading", unit="", unit_scale=True)

    def stage(name: str, total: float) -> Callable[[float], None]:
        bar.reset(total)
        bar.set_description(name)
        return lambda done: bar.update(min(done, bar.total - bar.n))  # sums round

    with one_line(), bar:
        yield Telling(bar.write, stage)
