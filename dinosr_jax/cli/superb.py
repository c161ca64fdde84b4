"""Commands of SUPERB's tasks on frozen features: keywords, intent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.evaluation import command_text
from dinosr_jax.cli.probes import apply_recipe, evaluation_folder, following, parse_rates

_FILE = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_FROM_0 = click.IntRange(min=0)


def _option(name: str, default: Any, **how: Any) -> Callable:
    return click.option(f"--{name}", default=default, show_default=True, **how)


def _recipe(*, num_steps: int, learning_rates: str, project_width: int) -> Callable:
    """Arguments and options of every task."""
    return shared.together(
        click.argument("checkpoint", type=_FILE),
        click.argument("data", type=_FILE),
        click.option(
            "--config",
            type=click.Path(exists=True, dir_okay=False),
            help="SUPERB's recipe: configs/evaluation/superb_*.py; options come first.",
        ),
        _option("num_steps", num_steps, type=_COUNT),
        _option("eval_steps", 100, type=_COUNT, help="Steps between looks at the validation part."),
        _option("batch_size", 16, type=_COUNT),
        _option("learning_rates", learning_rates, help="All are tried; validation chooses."),
        _option("project_width", project_width, type=_COUNT),
        _option(
            "max_memory",
            2.0,
            type=click.FloatRange(min=0, min_open=True),
            help="GiB of features that are held; what takes more is computed for every batch.",
        ),
        click.option("--cache", type=_FILE, help="Folder to keep features in, float16, instead."),
        click.option("--output", type=_FILE, help="Folder.  [default: RUN/evaluation]"),
        _option("seed", 0, type=click.IntRange(0, 2**32 - 1)),
        click.pass_context,
    )


@click.command()
@_recipe(num_steps=400, learning_rates="0.01,0.001", project_width=256)
@click.option(
    "--test_folder",
    type=_FILE,
    help="The test set's archive.  [default: a folder *test_set* near DATA, else testing_list.txt]",
)
def keywords(context: click.Context, test_folder: Path | None, **options: Any) -> None:
    """Keyword spotting on Speech Commands: accuracy, beside MFCC and the untrained network.

    DATA is the folder of the archive (folders of words, validation_list.txt, testing_list.txt,
    _background_noise_), or what TFDS prepared as speech_commands. SUPERB has version 0.01.
    """
    import functools

    from dinosr_jax.evaluation import classification
    from dinosr_jax.evaluation.keywords import read_keywords

    read = functools.partial(read_keywords, test_folder=test_folder)
    prepare = functools.partial(classification.classify, balanced=True)
    _run(context, "keywords", read, prepare, options)


@click.command()
@_recipe(num_steps=400, learning_rates="0.01,0.001", project_width=256)
def intent(context: click.Context, **options: Any) -> None:
    """Intent classification on Fluent Speech Commands: accuracy, beside MFCC, untrained network.

    DATA is the folder of the corpus: data/train_data.csv, valid_data.csv and test_data.csv with
    path, action, object, location, and the recordings. All three have to be right.
    """
    import functools

    from dinosr_jax.evaluation import classification
    from dinosr_jax.evaluation.intents import read_intents

    prepare = functools.partial(classification.classify, balanced=False)
    _run(context, "intent", read_intents, prepare, options)


def _run(
    context: click.Context, kind: str, read: Callable, prepare: Callable, options: dict[str, Any]
) -> None:
    """Reads, learns, tests, prints."""
    import logging

    from dinosr_jax.evaluation import learning, superb
    from dinosr_jax.inference import model

    logging.getLogger("absl").setLevel(logging.ERROR)
    apply_recipe(context, options, options.pop("config"))
    checkpoint, data = options.pop("checkpoint"), options.pop("data")
    output = options.pop("output") or evaluation_folder(checkpoint)
    wish = superb.Wish(max_bytes=int(options.pop("max_memory") * 2**30), cache=options.pop("cache"))
    rates = parse_rates(options.pop("learning_rates"))
    settings = learning.Settings(learning_rates=rates, **options)
    with following() as telling:
        trained = model.load(checkpoint)
        rows = superb.evaluate(
            trained,
            read(data),
            prepare,
            kind=kind,
            output=output,
            command=command_text(context),
            wish=wish._replace(settings=settings),
            telling=telling,
        )
    click.echo(f"{checkpoint}, {trained.step} updates; {data}")
    click.echo(f"{superb.summary(rows, kind=kind)}\n{output / kind}.json")
