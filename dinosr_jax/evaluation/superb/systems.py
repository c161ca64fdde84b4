"""One of SUPERB's tasks with a network, with MFCC, and with the same network untrained.

A task is learnt on frozen features, chosen on the validation part and tested on another, once;
its figures are written to a file of results.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.evaluation import result_files
from dinosr_jax.evaluation.comparison import NAMES, Telling
from dinosr_jax.evaluation.features import in_memory, sources
from dinosr_jax.evaluation.probes import head_training
from dinosr_jax.evaluation.probes.examples import PARTS, Examples
from dinosr_jax.evaluation.probes.rows import learnt_row
from dinosr_jax.evaluation.utterances import in_chance_order
from dinosr_jax.inference import outputs
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording

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


def _id(recording: Recording) -> str:
    return recording.id


class TaskOptions(NamedTuple):
    """How a task is learnt, and where features are kept: `max_bytes` of memory, or a `cache`.

    `emissions` is a folder for the log-probabilities of the test part, with the network.
    """

    settings: head_training.HeadSettings = head_training.HeadSettings()
    max_bytes: int = in_memory.MAX_BYTES
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
    wish: TaskOptions | None = None,
    telling: Telling | None = None,
) -> list[dict[str, Any]]:
    """Learns and tests a task, and writes OUTPUT/KIND.json.

    Args:
      model: Of `load`.
      examples: Of the task's corpus.
      prepare: Makes task and labels of examples and settings.
      kind: Of results.
      output: Folder, usually RUN/evaluation; KIND_skipped.tsv lists what was left out.
      command: That reproduces it.
      wish: How.
      telling: How it is followed.

    Returns:
      A row of results for each system.

    Raises:
      LabelError: A part is empty.
      OutputError: A folder cannot be written to.
    """
    wish, telling = wish or TaskOptions(), telling or Telling()
    settings = wish.settings
    examples = usable(model, examples, telling)
    outputs.write_skipped(output, examples.left_out, name=f"{kind}_skipped.tsv")
    task, labels = prepare(examples, settings=settings)
    about = {"kind": kind, "command": command, "settings": settings._asdict()}
    about |= {"checkpoint": model.path, "step": model.step, "seed": settings.seed}
    about |= {"data": examples.describe(), "rule": _rule(kind, settings)}
    programs = head_training.make_programs(task, settings)
    rows: list[dict[str, Any]] = []
    for system in _systems(model, examples, task, seed=settings.seed):
        parts = _parts(system, model, examples, labels, wish, telling)
        progress = telling.stage(f"{kind} with {NAMES[system.name]}", settings.num_steps)
        found = head_training.learn(
            task, *parts, settings=settings, programs=programs, progress=progress
        )
        rows.append({"system": system.name, **learnt_row(found, task, several=system.shape[0] > 1)})
        # each time: what was found is kept if the next one is stopped
        result_files.write_results(output / f"{kind}.json", rows=rows, **about)
        telling.say(told(rows[-1], kind=kind, chosen_by=task.chosen_by))
        if wish.emissions is not None and system.name == "codebook":
            size = {"batch_size": settings.batch_size}
            emissions = head_training.log_probabilities(task, found.params, parts[2], **size)
            write_emissions(wish.emissions, emissions)
    return rows


def _rule(kind: str, settings: head_training.HeadSettings) -> str:
    rates = ", ".join(f"{rate:g}" for rate in settings.learning_rates)
    return f"{RULES[kind]}; learning rate out of {rates}"


def _systems(
    model: Pretrained, examples: Examples, task: head_training.HeadTask, *, seed: int
) -> list[sources.System]:
    """The network, MFCC and the untrained network, as a task's head needs them."""
    statistics = None
    if task.head.pooled:
        learnt = in_chance_order([example.recording for example in examples.train], key=_id)
        statistics = in_memory.mfcc_statistics(learnt[:_MFCC_RECORDINGS], model=model)
    fresh = in_memory.untrained(model, seed=seed)
    return sources.systems(model, fresh, statistics=statistics)


def _parts(
    system: sources.System,
    model: Pretrained,
    examples: Examples,
    labels: Mapping[str, np.ndarray],
    wish: TaskOptions,
    telling: Telling,
) -> list[head_training.FeaturePart]:
    """Features and labels of each part."""
    recordings = [example.recording for example in examples.everyone()]
    seconds = sum(r.num_samples for r in recordings) / audio.SAMPLE_RATE
    source = sources.open_source(
        system,
        recordings,
        model=model,
        max_bytes=wish.max_bytes,
        cache=wish.cache,
        say=telling.say,
        progress=telling.stage(f"features of {NAMES[system.name]}", seconds),
    )
    return [
        head_training.FeaturePart(source, {e.recording.id: labels[e.recording.id] for e in some})
        for some in (getattr(examples, part) for part in PARTS)
    ]


def write_emissions(folder: Path, emissions: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes FOLDER/ID.npy of each id: log-probabilities [T, C] float32.

    Raises:
      OutputError: The id leads out of the folder, or it cannot be written to.
    """
    for id_, array in emissions:
        with outputs.replacing(outputs.inside(folder, f"{id_}.npy"), sync=False) as file:
            np.save(file, array)


def usable(model: Pretrained, examples: Examples, telling: Telling) -> Examples:
    """Those whose recordings can be read; the others are left out, and said.

    Args:
      model: Says what is too short.
      examples: Of a corpus.
      telling: How it is followed.

    Returns:
      The examples, with the lengths of their recordings.

    Raises:
      LabelError: A part is empty.
    """
    bad: list[tuple[str, str]] = []
    recordings = [example.recording for example in examples.everyone()]
    known = sources.checked(
        recordings,
        model=model,
        on_bad=lambda recording, reason: bad.append((recording.name, reason)),
        progress=telling.stage("reading", len(recordings)),
    )
    examples = examples._replace(left_out=(*examples.left_out, *bad))
    if examples.left_out:
        name, reason = examples.left_out[0]
        telling.say(f"{len(examples.left_out)} are left out; the first is {name}: {reason}")
    return examples.only(known)


def told(row: Mapping[str, Any], *, kind: str, chosen_by: str) -> str:
    """A row of results in a line, with what every learning rate did on the validation part."""
    valid = row[f"valid_{chosen_by}"]
    grid = ", ".join(f"{rate}: {value:.3f}" for rate, value in valid.items())
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
