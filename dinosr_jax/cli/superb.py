"""Commands of SUPERB's tasks on frozen features: keywords, intent, slots, asr."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.evaluation import command_text
from dinosr_jax.cli.probes import (
    apply_recipe,
    check_splits,
    evaluation_folder,
    following,
    parse_rates,
)

_FILE = shared.LocalPath()
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
            type=shared.LocalPath(exists=True),
            help="SUPERB's recipe: configs/evaluation/superb_*.py; options come first.",
        ),
        _option("num_steps", num_steps, type=_COUNT),
        _option("eval_steps", 100, type=_COUNT, help="Steps between looks at the validation part."),
        _option("batch_size", 16, type=_COUNT),
        _option("learning_rates", learning_rates, help="All are tried; validation chooses."),
        _option("project_width", project_width, type=_COUNT),
        shared.features,
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
def keywords(context: click.Context, **options: Any) -> None:
    """Keyword spotting on Speech Commands: accuracy, beside MFCC and the untrained network.

    DATA is the folder of the archive (folders of words, validation_list.txt, testing_list.txt,
    _background_noise_), or what TFDS prepared as speech_commands. SUPERB has version 0.01.
    """
    from dinosr_jax.evaluation.superb import utterance_tasks
    from dinosr_jax.evaluation.superb.keywords import read_keywords

    apply_recipe(context, options, options.pop("config"))
    read = functools.partial(read_keywords, test_folder=options.pop("test_folder"))
    prepare = functools.partial(utterance_tasks.classify, balanced=True)
    _run(context, "keywords", read, prepare, options)


@click.command()
@_recipe(num_steps=400, learning_rates="0.01,0.001", project_width=256)
def intent(context: click.Context, **options: Any) -> None:
    """Intent classification on Fluent Speech Commands: accuracy, beside MFCC, untrained network.

    DATA is the folder of the corpus: data/train_data.csv, valid_data.csv and test_data.csv with
    path, action, object, location, and the recordings. All three have to be right.
    """
    from dinosr_jax.evaluation.superb import utterance_tasks
    from dinosr_jax.evaluation.superb.intents import read_intents

    apply_recipe(context, options, options.pop("config"))
    prepare = functools.partial(utterance_tasks.classify, balanced=False)
    _run(context, "intent", read_intents, prepare, options)


_AUGMENT = {
    "warp_frames": 5,
    "num_feature_masks": 4,
    "feature_mask_width": 50,
    "num_time_masks": 2,
    "time_mask_width": 10,
}
_recurrent = shared.together(
    _option("lstm_width", 128, type=_COUNT, help="Of each direction of each layer."),
    _option("lstm_layers", 2, type=_FROM_0),
    _option("dropout", 0.2, type=click.FloatRange(0, 1, max_open=True)),
    *(_option(n, of, type=_FROM_0, help="Of SpecAugment.") for n, of in _AUGMENT.items()),
    _option(
        "time_mask_share",
        0.0,
        type=click.FloatRange(0, 1),
        help="Of the frames: as many masks in time, none of a larger share; 0 for a fixed number.",
    ),
)


@click.command()
@_recipe(num_steps=800, learning_rates="0.003,0.001", project_width=128)
@_recurrent
@click.option(
    "--voices",
    type=click.Choice(["superb", "all"]),
    default="superb",
    show_default=True,
    help="Which of the synthetic voices are in each part.",
)
def slots(context: click.Context, **options: Any) -> None:
    """Slot filling on Audio SNIPS: F1 of slots, CER of values, beside MFCC and untrained network.

    DATA holds all.iob.snips.txt, slots.txt, and recordings in train/, valid/ and test/, as s3prl
    prepares them.
    """
    from dinosr_jax.evaluation.superb.slots import fill_slots, read_slots

    apply_recipe(context, options, options.pop("config"))
    read = functools.partial(read_slots, voices=options.pop("voices"))
    _run(context, "slots", read, fill_slots, options)


@click.command()
@_recipe(num_steps=800, learning_rates="0.003,0.001", project_width=128)
@_recurrent
@click.option("--train_split", default="train", show_default=True, help="To learn from.")
@click.option("--valid_split", default="", help="To choose on.  [default: 15 % of --train_split]")
@click.option("--split", default="test", show_default=True, help="To test on.")
@click.option(
    "--symbols",
    type=click.Choice(["letters", "characters"]),
    default="letters",
    show_default=True,
    help="Those of English, or all characters of the transcripts.",
)
@click.option("--emissions", type=_FILE, help="Folder for log-probabilities of the test part.")
def asr(context: click.Context, **options: Any) -> None:
    """Speech recognition on frozen features: WER without a language model, beside the baselines.

    DATA is a prepared dataset with transcripts. Emissions are one .npy [frames, symbols] an
    utterance, float32, with the blank first and, of letters, in fairseq's order.
    """
    from dinosr_jax.evaluation.superb import letters

    apply_recipe(context, options, options.pop("config"))
    splits = {name: options.pop(name) for name in ("train_split", "valid_split", "split")}
    with one_line():
        check_splits(options["data"], splits)
    symbols, vocabulary = options.pop("symbols"), []

    def read(data: Path) -> Any:
        examples = letters.read_letters(data, **splits)
        vocabulary.append(letters.vocabulary_of(examples, symbols=symbols))
        return letters.spelt(examples, vocabulary=vocabulary[0])

    prepare = lambda examples, settings: letters.transcribe(
        examples, settings=settings, vocabulary=vocabulary[0]
    )
    _run(context, "asr", read, prepare, options)


def _run(
    context: click.Context, kind: str, read: Callable, prepare: Callable, options: dict[str, Any]
) -> None:
    """Reads, learns, tests, prints; what is left of the options are settings."""
    import logging

    from dinosr_jax.evaluation.probes import head_training, heads
    from dinosr_jax.evaluation.superb import systems
    from dinosr_jax.inference import pretrained

    logging.getLogger("absl").setLevel(logging.ERROR)
    checkpoint, data = options.pop("checkpoint"), options.pop("data")
    output = options.pop("output") or evaluation_folder(checkpoint)
    max_bytes = int(options.pop("max_memory") * 2**30)
    kept = {name: options.pop(name, None) for name in ("cache", "emissions")}
    masks = {name: options.pop(name) for name in heads.Augment._fields if name in options}
    rates = parse_rates(options.pop("learning_rates"))
    augment = heads.Augment(**masks) if masks else None
    settings = head_training.HeadSettings(learning_rates=rates, augment=augment, **options)
    with following() as telling:
        trained = pretrained.load(checkpoint)
        rows = systems.evaluate(
            trained,
            read(data),
            prepare,
            kind=kind,
            output=output,
            command=command_text(context),
            wish=systems.TaskOptions(settings, max_bytes, **kept),
            telling=telling,
        )
    click.echo(f"{checkpoint}, {trained.step} updates; {data}")
    click.echo(f"{systems.summary(rows, kind=kind)}\n{output / kind}.json")
