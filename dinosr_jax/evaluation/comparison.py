"""A network beside MFCC and the same network untrained: units, frames, recognition, on one corpus.

Each task writes a file of results. What is fitted or learnt is so on the training split, and
tested on another.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dinosr_jax.data import audio
from dinosr_jax.evaluation import result_files
from dinosr_jax.evaluation.corpus import Corpus, write_example
from dinosr_jax.evaluation.features import compute, store
from dinosr_jax.evaluation.probes import frame_classifier, head_training, phone_recognition
from dinosr_jax.evaluation.probes import rows as probe_rows
from dinosr_jax.evaluation.probes.examples import Example, Examples, gather
from dinosr_jax.evaluation.result_files import Validated
from dinosr_jax.evaluation.units import baselines
from dinosr_jax.evaluation.utterances import Division, Labelled, describe, divide
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording

TaskName = Literal["units", "frames", "recognition"]
Row = dict[str, Any]
# name of a stage, and all that is to be done -> what is called with how much more is done
Stage = Callable[[str, float], Callable[[float], None]]
_EXAMPLE = "utterance.npz"
_VALID_SHARE = 0.15  # of the training utterances, where no validation split is named
NAMES = {
    "codebook": "the network",
    "kmeans": "the network",
    "mfcc": "MFCC",
    "untrained": "the untrained network",
}


class ComparisonOptions(NamedTuple):
    """What to compare, and how much of it.

    `fit_minutes` of the training split are clustered (None: 256 frames a cluster); `max_bytes` and
    `cache` are as in `store.open_features`; `seed` is that of the untrained network, of k-means and
    of the classifiers.
    """

    tasks: tuple[TaskName, ...] = ("units", "frames", "recognition")
    fit_minutes: float | None = None
    max_bytes: int = store.MAX_BYTES
    cache: Path | None = None
    seed: int = 0
    of_frames: frame_classifier.ClassifierSettings = frame_classifier.ClassifierSettings()
    of_recognition: head_training.HeadSettings = head_training.HeadSettings()


class Progress(NamedTuple):
    """How a run is followed: notices, and progress by stages."""

    say: Callable[[str], None] = lambda text: None
    stage: Stage = lambda name, total: lambda done: None


def compare(
    model: Pretrained,
    corpus: Corpus,
    *,
    output: Path,
    command: str,
    options: ComparisonOptions | None = None,
    progress: Progress | None = None,
) -> dict[TaskName, list[Row]]:
    """Compares, and writes OUTPUT/units.json, frames.json, recognition.json.

    Args:
      model: Of `load`.
      corpus: Of `open_corpus`.
      output: Folder, usually RUN/evaluation; utterance.npz, an example to look at, goes there too.
      command: That reproduces it.
      options: What to compare.
      progress: How it is followed.

    Returns:
      The rows of each task.

    Raises:
      LabelError: There are too few utterances with phones.
      RuleError: Units of a network whose frames do not begin every so many 10 ms.
      AudioError: A recording cannot be read.
      OutputError: The folder cannot be written to.
    """
    options, progress = options or ComparisonOptions(), progress or Progress()
    write = functools.partial(
        result_files.write_results,
        command=command,
        checkpoint=model.path,
        step=model.step,
        seed=options.seed,
    )
    if "units" in options.tasks:
        baselines.rule(model)  # refuses before anything is computed
    fresh = compute.untrained(model, seed=options.seed)
    results: dict[TaskName, list[Row]] = {}
    if "units" in options.tasks:
        results["units"], texts = _units(model, fresh, corpus, options, progress)
        phones = list(corpus.alignment.labels)
        write(output / "units.json", kind="units", rows=results["units"], phones=phones, **texts)
    if {"units", "frames"} & set(options.tasks):  # recognition needs no times
        write_example(model, corpus, output / _EXAMPLE)
    if {"frames", "recognition"} & set(options.tasks):
        for task, (rows, texts) in _probes(model, fresh, corpus, options, progress).items():
            write(output / f"{task}.json", kind=task, rows=rows, **texts)
            results[task] = rows
    return results


def _units(
    model: Pretrained,
    fresh: Pretrained,
    corpus: Corpus,
    options: ComparisonOptions,
    progress: Progress,
) -> tuple[list[Row], dict[str, str]]:
    """Codes of every codebook; k-means on this network, MFCC, the untrained network.

    Returns rows of results, and the texts `data` and `rule`.
    """
    tested = [utterance.recording for utterance in corpus.test]
    minutes = options.fit_minutes or baselines.minutes_for(model)
    fitted = baselines.some_of(corpus.recordings, minutes=minutes)
    alignment = baselines.phones_of(corpus.test, like=corpus.alignment)
    row = functools.partial(baselines.row, alignment=alignment, model=model)
    done = progress.stage("codes", _seconds(tested))
    codes = baselines.codebook_codes(model, tested, progress=done)
    rows = [row(of_layer, system="codebook", layer=i) for i, of_layer in codes.items()]
    layers = tuple(codes)  # those that have a codebook
    on_network = lambda network: functools.partial(
        compute.of_network, network, layers=layers, lengths="fitted"
    )
    on_mfcc = functools.partial(compute.of_mfcc, model=model)
    for system, names, run in (
        ("kmeans", layers, on_network(model)),
        ("mfcc", (None,), on_mfcc),
        ("untrained", layers, on_network(fresh)),
    ):
        done = progress.stage(f"k-means on {NAMES[system]}", _seconds(fitted) + _seconds(tested))
        parts = (store.Features(names, dict(run(part, progress=done))) for part in (fitted, tested))
        codes = baselines.kmeans_codes(
            *parts, num_clusters=model.config.model.codebook_size, seed=options.seed
        )
        rows += [row(of_layer, system=system, layer=i) for i, of_layer in codes.items()]
    data = (
        f"{corpus.split} of {corpus.data_dir}, what has phones: {describe(corpus.test)}; k-means "
        f"on MFCC (normalised over the utterance) and on both networks' layers fitted on "
        f"{len(fitted)} utterances, {_seconds(fitted) / 60:.1f} minutes, of {corpus.train_split}"
    )
    rule = f"{baselines.rule(model).to_text()}; {corpus.phones_are()}"
    return rows, {"data": data, "rule": rule}


def _seconds(recordings: Sequence[Recording]) -> float:
    return sum(r.num_samples for r in recordings) / audio.SAMPLE_RATE


def _probes(
    model: Pretrained,
    fresh: Pretrained,
    corpus: Corpus,
    options: ComparisonOptions,
    progress: Progress,
) -> dict[TaskName, tuple[list[Row], dict[str, str]]]:
    """Rows and texts of both probes; the features of a system are computed once."""
    division, valid = divide(corpus.train, corpus.test), tuple(corpus.valid)
    if "recognition" in options.tasks and not valid:
        division, valid = _with_validation(division)
    learnt = {"frames": (*division.train, *valid), "recognition": division.train}
    examples = _examples(division, valid, corpus)
    everyone = [u.recording for u in (*division.train, *valid, *division.test)]

    def frames(features: store.Features, name: str) -> list[Row]:
        return probe_rows.probe_frames(
            features,
            division._replace(train=learnt["frames"]),
            conv_layers=model.config.model.conv_layers,
            settings=options.of_frames._replace(seed=options.seed),
            progress=progress.stage(f"frames of {name}", options.of_frames.num_steps),
        )

    def recognition(features: store.Features, name: str) -> list[Row]:
        settings = options.of_recognition._replace(seed=options.seed)
        done = progress.stage(f"recognition with {name}", settings.num_steps)
        return [probe_rows.recognise(features, examples, settings=settings, progress=done)]

    probes = {"frames": frames, "recognition": recognition}
    results: dict[TaskName, list[Row]] = {task: [] for task in options.tasks if task in probes}
    for system in store.systems(model, fresh, lengths="fitted"):
        name = NAMES[system.name]
        with store.open_features(
            system,
            everyone,
            model=model,
            max_bytes=options.max_bytes,
            cache=options.cache,
            say=progress.say,
            progress=progress.stage(f"features of {name}", _seconds(everyone)),
        ) as features:
            for task, rows in results.items():
                rows += [{"system": system.name} | row for row in probes[task](features, name)]
    texts = _texts_of_probes(corpus, division, learnt, len(valid), options)
    return {task: (rows, texts[task]) for task, rows in results.items()}


def _texts_of_probes(
    corpus: Corpus,
    division: Division,
    learnt: Mapping[str, Sequence[Labelled]],
    num_valid: int,
    options: ComparisonOptions,
) -> dict[str, dict[str, str]]:
    """`data` and `rule` of each probe."""
    data = {
        task: f"{corpus.split} of {corpus.data_dir}: {describe(division.test)}; learnt on "
        f"{describe(some)} of {corpus.train_split if corpus.train else corpus.split}, divided "
        f"{division.rule}"
        for task, some in learnt.items()
    }
    data["recognition"] += f"; learning rate and step chosen on {num_valid} more"
    rates = ", ".join(f"{rate:g}" for rate in options.of_recognition.learning_rates)
    rules = {
        "frames": "the phone at the centre of what the network's frame reads, silence too; linear "
        "classifiers of layers (0: what the first one reads) and of SUPERB's weighted sum",
        "recognition": "SUPERB's PR: phones without silence, greedy decoding, edit distances over "
        f"lengths, learning rate out of {rates}",
    }
    return {
        task: {"data": data[task], "rule": f"{rule}; {corpus.phones_are()}"}
        for task, rule in rules.items()
    }


def to_recognise(corpus: Corpus) -> Examples:
    """The utterances of a corpus, with the phones that are said, for phone recognition alone."""
    division, valid = divide(corpus.train, corpus.test), tuple(corpus.valid)
    if not valid:
        division, valid = _with_validation(division)
    return _examples(division, valid, corpus)


def _examples(division: Division, valid: Sequence[Labelled], corpus: Corpus) -> Examples:
    parts = {"train": division.train, "valid": valid, "test": division.test}
    data = f"{corpus.split} of {corpus.data_dir}, {corpus.phones_are()}, divided {division.rule}"
    examples = {
        part: [Example(u.recording, phone_recognition.spoken(u.phones)) for u in some]
        for part, some in parts.items()
    }
    return gather(examples, data=data)


def _with_validation(division: Division) -> tuple[Division, tuple[Labelled, ...]]:
    """Takes some of the training utterances to choose on."""
    chosen = divide((), division.train, share=_VALID_SHARE)
    return division._replace(train=chosen.train), chosen.test


def summary(
    results: Mapping[TaskName, Sequence[Mapping[str, Any]]], validated: Validated | None = None
) -> str:
    """The best of each system side by side, as lines of text; PER is best where it is least.

    The layer in `validated`, chosen on other speech, counts for the network's codes; None takes the
    best on this.
    """
    metrics = {
        "units": ("pnmi", "PNMI", max),
        "frames": ("accuracy", "frame accuracy", max),
        "recognition": ("per", "phone error rate", min),
    }
    heads = {"codebook": "network", "mfcc": "MFCC", "untrained": "untrained network"}
    lines = [["", *heads.values()]]
    for task, rows in results.items():
        name, text, choose = metrics[task]
        cells = [text]
        for system in heads:
            own, by = [row for row in rows if row["system"] == system], ""
            if validated and (task, system) == ("units", "codebook"):
                own = [row for row in own if row["layer"] == validated.layer]
                by = f", chosen on {validated.split}"
            best = choose(own, key=lambda row: row[name])
            layer = best["layer"]
            where = {None: "", result_files.WEIGHTED: " (all layers)"}
            cells.append(f"{best[name]:.3f}{where.get(layer, f' (layer {layer}{by})')}")
        lines.append(cells)
    widths = [max(20, *map(len, column)) for column in zip(*lines, strict=True)]
    padded = lambda line: (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    return "\n".join("  ".join(padded(line)).rstrip() for line in lines)
