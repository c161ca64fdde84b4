"""Commands of SUPERB's tasks on frozen features: keywords, intent, slots, asr."""

import functools
from collections.abc import Callable
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.options import COUNT, FILE, FROM_0, PATH, SEED, argument, option
from dinosr_jax.cli.probes import (
    apply_recipe,
    check_splits,
    evaluate_task,
    parse_rates,
    valid_split,
)


def _recipe(*, num_steps: int, learning_rates: str, project_width: int) -> Callable:
    """Arguments and options of every task."""
    return shared.together(
        argument("checkpoint"),
        argument("data"),
        option(
            "config",
            FILE,
            text="SUPERB's recipe: configs/evaluation/superb_*.py; options come first.",
        ),
        option("num_steps", COUNT, num_steps),
        option("eval_steps", COUNT, 100, "Steps between looks at the validation part."),
        option("batch_size", COUNT, 16),
        option("learning_rates", None, learning_rates, "All are tried; validation chooses."),
        option("project_width", COUNT, project_width),
        shared.features,
        shared.evaluation_output,
        option("seed", SEED, 0),
        click.pass_context,
    )


@click.command()
@_recipe(num_steps=400, learning_rates="0.01,0.001", project_width=256)
@option(
    "test_folder",
    PATH,
    text="The test set's archive.  [default: a folder *test_set* near DATA, else testing_list.txt]",
)
def keywords(context: click.Context, **options: Any) -> None:
    """Keyword spotting on Speech Commands: accuracy, beside MFCC and the untrained network.

    DATA is the folder of the archive (folders of words, validation_list.txt, testing_list.txt,
    _background_noise_), or what TFDS prepared as speech_commands. SUPERB has version 0.01.
    """
    from dinosr_jax.evaluation.superb import utterance_tasks
    from dinosr_jax.evaluation.superb.keywords import read_keywords

    apply_recipe(context, options)
    read = functools.partial(read_keywords, test_folder=options["test_folder"])
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

    apply_recipe(context, options)
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
    option("lstm_width", COUNT, 128, "Of each direction of each layer."),
    option("lstm_layers", FROM_0, 2),
    option("dropout", click.FloatRange(0, 1, max_open=True), 0.2),
    *(option(name, FROM_0, default, "Of SpecAugment.") for name, default in _AUGMENT.items()),
    option(
        "time_mask_share",
        click.FloatRange(0, 1),
        0.0,
        "Of the frames: as many masks in time, none of a larger share; 0 for a fixed number.",
    ),
)


@click.command()
@_recipe(num_steps=800, learning_rates="0.003,0.001", project_width=128)
@_recurrent
@option("voices", ["superb", "all"], "superb", "Which of the synthetic voices are in each part.")
def slots(context: click.Context, **options: Any) -> None:
    """Slot filling on Audio SNIPS: F1 of slots, CER of values, beside MFCC and untrained network.

    DATA holds all.iob.snips.txt, slots.txt, and recordings in train/, valid/ and test/, as s3prl
    prepares them.
    """
    from dinosr_jax.evaluation.superb.slots import fill_slots, read_slots

    apply_recipe(context, options)
    read = functools.partial(read_slots, voices=options["voices"])
    _run(context, "slots", read, fill_slots, options)


@click.command()
@_recipe(num_steps=800, learning_rates="0.003,0.001", project_width=128)
@_recurrent
@option("train_split", default="train", text="To learn from.")
@valid_split
@option("split", default="test", text="To test on.")
@option(
    "symbols",
    ["letters", "characters"],
    "letters",
    "Those of English, or all characters of the transcripts.",
)
@option("emissions", PATH, text="Folder for log-probabilities of the test part.")
def asr(context: click.Context, **options: Any) -> None:
    """Speech recognition on frozen features: WER without a language model, beside the baselines.

    DATA is a prepared dataset with transcripts. Emissions are one .npy [frames, symbols] an
    utterance, float32, with the blank first and, of letters, in fairseq's order.
    """
    from dinosr_jax.evaluation.superb import letters

    apply_recipe(context, options)
    splits = {name: options[name] for name in ("train_split", "valid_split", "split")}
    with one_line():
        check_splits(options["data"], splits)
    vocabulary = []

    def read(data: Any) -> Any:
        examples = letters.read_letters(data, **splits)
        vocabulary.append(letters.vocabulary_of(examples, symbols=options["symbols"]))
        return letters.spelt(examples, vocabulary=vocabulary[0])

    prepare = lambda examples, settings: letters.transcribe(
        examples, settings=settings, vocabulary=vocabulary[0]
    )
    _run(context, "asr", read, prepare, options)


def _run(
    context: click.Context, kind: str, read: Callable, prepare: Callable, options: dict[str, Any]
) -> None:
    """Evaluates the task with the settings among the options."""
    from dinosr_jax.evaluation.probes import head_training, heads
    from dinosr_jax.inference import pretrained

    masks = {name: options[name] for name in heads.Augment._fields if name in options}
    own = {name: options[name] for name in head_training.HeadSettings._fields if name in options}
    own["learning_rates"] = parse_rates(options["learning_rates"])
    settings = head_training.HeadSettings(augment=heads.Augment(**masks) if masks else None)
    open_ = lambda: (pretrained.load(options["checkpoint"]), read(options["data"]))
    evaluate_task(
        context, kind, open_, prepare, settings._replace(**own), options, data=options["data"]
    )
