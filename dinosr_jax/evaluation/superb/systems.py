"""One of SUPERB's tasks with a network, with MFCC, and with the same network untrained.

A task is learnt on frozen features, chosen on the validation part and tested on another, once;
its figures are written to a file of results.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.evaluation import result_files
from dinosr_jax.evaluation.comparison import NAMES, Progress
from dinosr_jax.evaluation.features import compute, store
from dinosr_jax.evaluation.probes import head_training
from dinosr_jax.evaluation.probes.examples import Examples
from dinosr_jax.evaluation.probes.rows import learnt_row
from dinosr_jax.evaluation.utterances import in_chance_order
from dinosr_jax.inference import outputs
from dinosr_jax.inference.pretrained import Pretrained

Prepare = Callable[..., tuple[head_training.HeadTask, Mapping[str, np.ndarray]]]
METRICS = {
    "recognition": ("per",),
    "keywords": ("accuracy",),
    "intent": ("accuracy",),
    "slots": ("f1", "cer"),
    "asr": ("wer", "cer"),
}
RULES = {
    "recognition": "SUPERB's PR: phones without silence, greedy decoding; phone error rate",
    "keywords": "SUPERB's KS: accuracy; every class is learnt from and chosen on as often",
    "intent": "SUPERB's IC: accuracy, all three slots right",
    "slots": "SUPERB's SF: F1 of slot types, mean over utterances; CER of slot values",
    "asr": "SUPERB's ASR: letters, greedy decoding, no language model; WER",
}


_MFCC_RECORDINGS = 500  # of the training part, for their mean and variance


class TaskOptions(NamedTuple):
    """How a task is learnt; `max_bytes` and `cache` are as in `store.open_features`.

    `emissions` is a folder for the log-probabilities of the test part, with the network.
    """

    settings: head_training.HeadSettings = head_training.HeadSettings()
    max_bytes: int = store.MAX_BYTES
    cache: Path | None = None
    emissions: Path | None = None


def evaluate(
    model: Pretrained,
    examples: Examples,
    prepare: Prepare,
    *,
    kind: result_files.Kind,
    output: Path,
    command: str,
    options: TaskOptions | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Learns and tests a task; writes OUTPUT/KIND.json, and KIND_skipped.tsv: what was left out.

    Args:
      model: Of `load`.
      examples: Of the task's corpus.
      prepare: Makes task and labels of examples and settings.
      kind: Of results.
      output: Folder, usually RUN/evaluation.
      command: That reproduces it.
      options: How.
      progress: How it is followed.

    Returns:
      A row of results for each system.

    Raises:
      LabelError: A part is empty.
      OutputError: A folder cannot be written to.
    """
    options, progress = options or TaskOptions(), progress or Progress()
    settings = options.settings
    examples = _usable(model, examples, progress)
    outputs.write_skipped(output, examples.left_out, name=f"{kind}_skipped.tsv")
    task, labels = prepare(examples, settings=settings)
    rates = ", ".join(f"{rate:g}" for rate in settings.learning_rates)
    about = {"kind": kind, "command": command, "settings": settings._asdict()}
    about |= {"checkpoint": model.path, "step": model.step, "seed": settings.seed}
    about |= {"data": examples.describe(), "rule": f"{RULES[kind]}; learning rate out of {rates}"}
    learn = functools.partial(
        head_training.learn,
        task,
        settings=settings,
        programs=head_training.make_programs(task, settings),
    )
    rows: list[dict[str, Any]] = []
    for system in _systems(model, examples, task, seed=settings.seed):
        with _parts(system, model, examples, labels, options, progress) as parts:
            stage = progress.stage(f"{kind} with {NAMES[system.name]}", settings.num_steps)
            learnt = learn(*parts, progress=stage)
            row = learnt_row(learnt, task, several=len(system.layers) > 1)
            rows.append({"system": system.name, **row})
            # each time: what is measured is kept if the next one is stopped
            result_files.write_results(output / f"{kind}.json", rows=rows, **about)
            progress.say(_line(rows[-1], kind=kind, chosen_by=task.chosen_by))
            if options.emissions is not None and system.name == "codebook":
                size = {"batch_size": settings.batch_size}
                emissions = head_training.log_probabilities(task, learnt.params, parts[2], **size)
                _write_emissions(options.emissions, emissions)
    return rows


@contextlib.contextmanager
def _parts(
    system: store.System,
    model: Pretrained,
    examples: Examples,
    labels: Mapping[str, np.ndarray],
    options: TaskOptions,
    progress: Progress,
) -> Iterator[list[head_training.FeaturePart]]:
    """Features and labels of each part."""
    recordings = [example.recording for example in examples.everyone()]
    seconds = sum(r.num_samples for r in recordings) / audio.SAMPLE_RATE
    with store.open_features(
        system,
        recordings,
        model=model,
        max_bytes=options.max_bytes,
        cache=options.cache,
        say=progress.say,
        progress=progress.stage(f"features of {NAMES[system.name]}", seconds),
    ) as features:
        yield head_training.feature_parts(features, examples, labels)


def _systems(
    model: Pretrained, examples: Examples, task: head_training.HeadTask, *, seed: int
) -> list[store.System]:
    """The network, MFCC and the untrained network, as a task's head needs them."""
    statistics = None
    if task.head.pooled:
        train = in_chance_order([e.recording for e in examples.train], key=lambda r: r.id)
        statistics = compute.mfcc_statistics(train[:_MFCC_RECORDINGS], model=model)
    return store.systems(model, compute.untrained(model, seed=seed), statistics=statistics)


def _write_emissions(folder: Path, emissions: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes FOLDER/ID.npy of each id: log-probabilities [T, C] float32."""
    for id_, array in emissions:
        with outputs.replacing(outputs.inside(folder, f"{id_}.npy"), sync=False) as file:
            np.save(file, array)


def _usable(model: Pretrained, examples: Examples, progress: Progress) -> Examples:
    """Those whose recordings can be read, with their lengths; the others are left out, and said.

    Raises LabelError where a part is empty.
    """
    bad: list[tuple[str, str]] = []
    recordings = [example.recording for example in examples.everyone()]
    known = store.checked(
        recordings,
        model=model,
        on_bad=lambda recording, reason: bad.append((recording.name, reason)),
        progress=progress.stage("reading", len(recordings)),
    )
    examples = examples._replace(left_out=(*examples.left_out, *bad))
    if examples.left_out:
        name, reason = examples.left_out[0]
        progress.say(f"{len(examples.left_out)} are left out; the first is {name}: {reason}")
    return examples.only(known)


def _line(row: Mapping[str, Any], *, kind: str, chosen_by: str) -> str:
    """A row of results in a line, with what every learning rate did on the validation part."""
    grid = ", ".join(f"{rate}: {value:.3f}" for rate, value in row[f"valid_{chosen_by}"].items())
    figures = ", ".join(
        f"{name.upper() if len(name) < 4 else name} {row[name]:.3f}" for name in METRICS[kind]
    )
    return (
        f"{kind} with {NAMES[row['system']]}: {figures}; learning rate {row['learning_rate']:g} "
        f"after {row['updates']:,} updates ({chosen_by} on the validation part by learning rate "
        f"{grid})"
    )


def summary(rows: Sequence[Mapping[str, Any]], *, kind: str) -> str:
    """The systems side by side, as a table."""
    lines = [["", *(NAMES[row["system"]].removeprefix("the ") for row in rows)]]
    for name in METRICS[kind]:
        lines.append([name, *(f"{row[name]:.3f}" for row in rows)])
    return "\n".join("  ".join(cell.ljust(20) for cell in line).rstrip() for line in lines)
