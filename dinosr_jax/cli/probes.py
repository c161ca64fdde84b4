"""Commands that compare a network with MFCC and with itself untrained."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line, silence_absl
from dinosr_jax.cli.evaluation import command_text
from dinosr_jax.cli.options import COUNT, FILE, PATH, POSITIVE, SEED, argument, option

_TASKS = ("units", "frames", "recognition")
_over_corpus = shared.together(
    argument("checkpoint"),
    argument("data_dir", metavar="INPUT"),
    option("train_split", default="train", text="To fit and learn."),
    option("split", default="test", text="To test on."),
    option("alignment", PATH, text="Phones.  [default: those that INPUT carries]"),
    shared.prefix,
    shared.stress,
    shared.evaluation_output,
    option("seed", SEED, 0),
)
valid_split = option(
    "valid_split", default="", text="To choose on.  [default: 15 % of --train_split]"
)


@click.command()
@_over_corpus
@option("task", default=",".join(_TASKS), text="Some of them.")
@option(
    "fit_minutes", POSITIVE, text="Of --train_split, for k-means.  [default: 256 frames a cluster]"
)
@shared.features
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
    _compare(context, options, tasks=tasks, fit_minutes=fit_minutes)


@click.command("frames")
@_over_corpus
@option("num_steps", COUNT, 1000)
@option("batch_frames", COUNT, 1024)
@option("learning_rate", float, 1e-2)
@shared.features
@click.pass_context
def frames_command(context: click.Context, **options: Any) -> None:
    """Accuracy of linear classifiers of the phone in a frame, by layer; MFCC, untrained network.

    CHECKPOINT and INPUT as in `run`. Tested on other speakers, where several are known.
    """
    from dinosr_jax.evaluation.probes.frame_classifier import ClassifierSettings

    names = ("num_steps", "batch_frames", "learning_rate")
    settings = ClassifierSettings(**{name: options.pop(name) for name in names})
    _compare(context, options, tasks=("frames",), of_frames=settings)


@click.command("recognition")
@_over_corpus
@valid_split
@option(
    "lexicon",
    PATH,
    text="Words and their phones: the transcripts are spelt with it, --alignment is not needed.",
)
@option(
    "config",
    FILE,
    text="Recipe and splits: configs/evaluation/superb_pr.py; options that are given come first.",
)
@option("num_steps", COUNT, 400)
@option("eval_steps", COUNT, 100)
@option("batch_size", COUNT, 16)
@option("learning_rates", default="0.1,0.01,0.001")
@shared.features
@click.pass_context
def recognition_command(context: click.Context, **options: Any) -> None:
    """Phone error rate of SUPERB's phone recognition, on frozen features; MFCC, untrained network.

    CHECKPOINT and INPUT as in `run`.
    """
    from dinosr_jax.evaluation import comparison
    from dinosr_jax.evaluation.probes import head_training, phone_recognition

    apply_recipe(context, options)
    settings = head_training.HeadSettings(
        learning_rates=parse_rates(options["learning_rates"]),
        **{name: options[name] for name in ("num_steps", "eval_steps", "batch_size", "seed")},
    )

    def read() -> tuple[Any, Any]:
        trained, corpus = _open(options)
        return trained, comparison.to_recognise(corpus)

    evaluate_task(
        context, "recognition", read, phone_recognition.recognise, settings, options,
        data=options["data_dir"],
    )  # fmt: skip


def evaluate_task(
    context: click.Context,
    kind: Any,
    read: Callable[[], tuple[Any, Any]],
    prepare: Callable,
    settings: Any,
    options: Mapping[str, Any],
    *,
    data: Path,
) -> None:
    """Reads (network, examples), learns, tests, prints: one of SUPERB's tasks."""
    from dinosr_jax.evaluation.superb import systems

    output = options["output"] or evaluation_folder(options["checkpoint"])
    how = systems.TaskOptions(
        settings, max_bytes(options), options["cache"], options.get("emissions")
    )
    with following() as progress:
        trained, examples = read()
        rows = systems.evaluate(
            trained,
            examples,
            prepare,
            kind=kind,
            output=output,
            command=command_text(context),
            options=how,
            progress=progress,
        )
    click.echo(f"{options['checkpoint']}, {trained.step} updates; {data}")
    click.echo(f"{systems.summary(rows, kind=kind)}\n{output / kind}.json")


def max_bytes(options: Mapping[str, Any]) -> int:
    """--max_memory, which is in GiB."""
    return int(options["max_memory"] * 2**30)


def apply_recipe(context: click.Context, options: dict[str, Any]) -> None:
    """Puts the fields of the recipe `--config` in place of options that were not given."""
    import runpy

    config = options.pop("config")
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
    context: click.Context, options: dict[str, Any], *, tasks: tuple[str, ...], **choices: Any
) -> None:
    """Loads, compares, prints the table."""
    from dinosr_jax.evaluation import comparison, utterances

    output = options["output"] or evaluation_folder(options["checkpoint"])
    how = comparison.ComparisonOptions(
        tasks=tasks,
        seed=options["seed"],
        max_bytes=max_bytes(options),
        cache=options["cache"],
        **choices,
    )
    with following() as progress:
        trained, corpus = _open(options)
        rows = comparison.compare(
            trained,
            corpus,
            output=output,
            command=command_text(context),
            options=how,
            progress=progress,
        )
    text = f"{options['checkpoint']}, {trained.step} updates; {options['split']}: "
    click.echo(text + utterances.describe(corpus.test))
    table = comparison.summary(rows, _validated(options["checkpoint"], split=options["split"]))
    click.echo(f"{table}\n{output}: " + ", ".join(f"{task}.json" for task in rows))


def _validated(checkpoint: Path, *, split: str) -> Any:
    """The layer that another split chose while a run trained; None where none is known."""
    from dinosr_jax.report import health, run_files

    try:
        chosen = health.validated(run_files.read_run(_run_of(checkpoint)))
    except run_files.ReportError:
        return None
    return chosen if chosen and chosen.split != split else None


def _open(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The network, and the corpus with its phones."""
    from dinosr_jax.evaluation import utterances
    from dinosr_jax.evaluation.corpus import open_corpus
    from dinosr_jax.inference import pretrained

    data_dir = options["data_dir"]
    splits = {name: options.get(name, "") for name in ("train_split", "split", "valid_split")}
    if options["checkpoint"].exists():  # else `load` says so
        check_splits(data_dir, splits)
    trained = pretrained.load(options["checkpoint"])
    if lexicon := options.get("lexicon"):
        named = list(filter(None, splits.values()))
        alignment = utterances.spell(
            data_dir, splits=named, lexicon=lexicon, stress=options["stress"]
        )
    else:
        how = {name: options[name] for name in ("prefix", "stress")}
        alignment = utterances.find_alignment(data_dir, given=options["alignment"], **how)
    return trained, open_corpus(data_dir, alignment, model=trained, **splits)


def check_splits(data_dir: Path, splits: Mapping[str, str]) -> None:
    """Raises ManifestError, naming the option, where a split is not there; '' is none."""
    from dinosr_jax.data import manifest

    for option_, split in splits.items():
        try:
            if split:
                manifest.check_split(data_dir, dataset=manifest.dataset_in(data_dir), split=split)
        except manifest.ManifestError as error:
            raise manifest.ManifestError(f"--{option_}={split}: {error}") from None


def evaluation_folder(checkpoint: Path) -> Path:
    """RUN/evaluation of a run or of one of its steps."""
    folder = _run_of(checkpoint)
    if not (folder / "config.json").is_file():
        raise click.UsageError(f"{checkpoint} is no run of ours; name a folder with --output")
    return folder / "evaluation"


def _run_of(checkpoint: Path) -> Path:
    """The run of a step; a run, or what else it is, as it is."""
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint


@contextlib.contextmanager
def following() -> Iterator[Any]:
    """Notices and progress; errors become one line."""
    from dinosr_jax.evaluation.comparison import Progress
    from dinosr_jax.progress import progress_bar

    silence_absl()
    shown = "{desc}{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    bar = progress_bar(bar_format=shown, desc="reading", unit="", unit_scale=True)

    def stage(name: str, total: float) -> Callable[[float], None]:
        bar.reset(total)
        bar.set_description(name)
        return lambda done: bar.update(min(done, bar.total - bar.n))  # sums round

    with one_line(), bar:
        yield Progress(bar.write, stage)
