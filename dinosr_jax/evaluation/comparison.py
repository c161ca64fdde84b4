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
from dinosr_jax.evaluation.features import in_memory
from dinosr_jax.evaluation.probes import frame_classifier, head_training, phone_recognition
from dinosr_jax.evaluation.probes import rows as probe_rows
from dinosr_jax.evaluation.probes.examples import Example, Examples, gather
from dinosr_jax.evaluation.result_files import Validated
from dinosr_jax.evaluation.units import baselines
from dinosr_jax.evaluation.utterances import Division, LabelError, Labelled, describe, divide
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording

TaskName = Literal["units", "frames", "recognition"]
# name of a stage and all that is to be done -> what is told how much more is done
Stage = Callable[[str, float], Callable[[float], None]]
_EXAMPLE = "utterance.npz"
_VALID_SHARE = 0.15  # of the training utterances, where no validation split is named


class ComparisonOptions(NamedTuple):
    """What to compare, and how much of it.

    `fit_minutes` of the training split are clustered (None: 256 frames a cluster); `max_bytes` of
    features are held; `seed` is that of the untrained network, of k-means and of the classifiers.
    """

    tasks: tuple[TaskName, ...] = ("units", "frames", "recognition")
    fit_minutes: float | None = None
    max_bytes: int = in_memory.MAX_BYTES
    seed: int = 0
    of_frames: frame_classifier.ClassifierSettings = frame_classifier.ClassifierSettings()
    of_recognition: head_training.HeadSettings = head_training.HeadSettings()


class Telling(NamedTuple):
    """How a run is followed: notices, and progress by stages."""

    say: Callable[[str], None] = lambda text: None
    stage: Stage = lambda name, total: lambda done: None


def compare(
    model: Pretrained,
    corpus: Corpus,
    *,
    output: Path,
    command: str,
    wish: ComparisonOptions | None = None,
    telling: Telling | None = None,
) -> dict[TaskName, list[dict[str, Any]]]:
    """Computes what is wished, and writes OUTPUT/units.json, frames.json, recognition.json.

    Args:
      model: Of `load`.
      corpus: Of `open_corpus`.
      output: Folder, usually RUN/evaluation; utterance.npz, an example to look at, goes there too.
      command: That reproduces it.
      wish: What to compare.
      telling: How it is followed.

    Returns:
      The rows of each task.

    Raises:
      LabelError: There are too few utterances with phones.
      ValueError: Units are wished of a network whose frames do not begin every so many 10 ms.
      AudioError: A recording cannot be read.
      OutputError: The folder cannot be written to.
    """
    wish, telling = wish or ComparisonOptions(), telling or Telling()
    write = functools.partial(
        result_files.write_results,
        command=command,
        checkpoint=model.path,
        step=model.step,
        seed=wish.seed,
    )
    of_units = baselines.rule(model).to_text() if "units" in wish.tasks else ""
    fresh = in_memory.untrained(model, seed=wish.seed)
    found: dict[TaskName, list[dict[str, Any]]] = {}
    if "units" in wish.tasks:
        found["units"], data = compare_units(model, fresh, corpus, wish, telling)
        rule = f"{of_units}; {corpus.phones_are()}"
        texts = {"rule": rule, "data": data, "phones": list(corpus.alignment.labels)}
        write(output / "units.json", kind="units", rows=found["units"], **texts)
    if {"units", "frames"} & set(wish.tasks):  # recognition needs no times
        write_example(model, corpus, output / _EXAMPLE)
    if {"frames", "recognition"} & set(wish.tasks):
        probed = _probe(model, fresh, corpus, wish, telling)
        for task, (rows, data) in probed.items():
            rule = _rule(task, wish, corpus)
            write(output / f"{task}.json", kind=task, rows=rows, data=data, rule=rule)
            found[task] = rows
    return found


def compare_units(
    model: Pretrained, fresh: Pretrained, corpus: Corpus, wish: ComparisonOptions, telling: Telling
) -> tuple[list[dict[str, Any]], str]:
    """Unit quality: codes of every codebook; k-means on this network, MFCC, the untrained network.

    Returns:
      Rows of results, and on what they are, as a line of text.
    """
    tested = [utterance.recording for utterance in corpus.test]
    minutes = wish.fit_minutes or baselines.minutes_for(model)
    fitted = baselines.some_of(corpus.recordings, minutes=minutes)
    alignment = baselines.phones_of(corpus.test, like=corpus.alignment)
    row = functools.partial(baselines.row, alignment=alignment, model=model)
    told = telling.stage("codes", _seconds(tested))
    codes = baselines.codebook_codes(model, tested, progress=told)
    rows = [row(of_layer, system="codebook", layer=i) for i, of_layer in codes.items()]
    kmeans = {"num_clusters": model.config.model.codebook_size, "seed": wish.seed}
    layers = tuple(codes)  # those that have a codebook
    networks = {"kmeans": model, "untrained": fresh}
    for system in ("kmeans", "mfcc", "untrained"):
        told = telling.stage(f"k-means on {NAMES[system]}", _seconds(fitted) + _seconds(tested))
        if system == "mfcc":
            compute = functools.partial(in_memory.of_mfcc, model=model)
        else:
            compute = functools.partial(
                in_memory.of_network, networks[system], layers=layers, lengths="fitted"
            )
        train, test = (compute(some, progress=told) for some in (fitted, tested))
        codes = baselines.kmeans_codes(train, test, **kmeans)
        rows += [row(of_layer, system=system, layer=i) for i, of_layer in codes.items()]
    data = (
        f"{corpus.split} of {corpus.data_dir}, what has phones: {describe(corpus.test)}; k-means "
        f"on MFCC (normalised over the utterance) and on both networks' layers fitted on "
        f"{len(fitted)} utterances, {_seconds(fitted) / 60:.1f} minutes, of {corpus.train_split}"
    )
    return rows, data


def _seconds(recordings: Sequence[Recording]) -> float:
    return sum(r.num_samples for r in recordings) / audio.SAMPLE_RATE


def _probe(
    model: Pretrained, fresh: Pretrained, corpus: Corpus, wish: ComparisonOptions, telling: Telling
) -> dict[TaskName, tuple[list[dict[str, Any]], str]]:
    """Rows, and on what they are, of both probes; features are computed once for each system."""
    division, valid = divide(corpus.train, corpus.test), tuple(corpus.valid)
    if "recognition" in wish.tasks and not valid:
        division, valid = _with_validation(division)
    division, valid, dtype = _that_fit(model, division, valid, wish, telling)
    frame_division = division._replace(train=(*division.train, *valid))
    everyone = [*frame_division.train, *division.test]
    rows: dict[TaskName, list[dict[str, Any]]] = {
        task: [] for task in wish.tasks if task != "units"
    }
    for system, network in (("codebook", model), ("mfcc", model), ("untrained", fresh)):
        held = _features(system, network, everyone, dtype, telling)
        if "frames" in rows:
            found = probe_rows.probe_frames(
                held,
                frame_division,
                conv_layers=model.config.model.conv_layers,
                settings=wish.of_frames._replace(seed=wish.seed),
                progress=telling.stage(f"frames of {NAMES[system]}", wish.of_frames.num_steps),
            )
            rows["frames"] += [{"system": system} | row for row in found]
        if "recognition" in rows:
            steps = wish.of_recognition.num_steps
            row = probe_rows.recognise(
                held,
                division,
                valid,
                settings=wish.of_recognition._replace(seed=wish.seed),
                progress=telling.stage(f"recognition with {NAMES[system]}", steps),
            )
            rows["recognition"].append({"system": system} | row)
    learnt = corpus.train_split if corpus.train else corpus.split
    on = lambda some: (
        f"{corpus.split} of {corpus.data_dir}: {describe(division.test)}; learnt on "
        f"{describe(some)} of {learnt}, divided {division.rule}"
    )
    data = {
        "frames": on(frame_division.train),
        "recognition": f"{on(division.train)}; learning rate and step chosen on {len(valid)} more",
    }
    return {task: (lines, data[task]) for task, lines in rows.items()}


def to_recognise(corpus: Corpus) -> Examples:
    """The utterances of a corpus, with the phones that are said, for phone recognition alone."""
    division, valid = divide(corpus.train, corpus.test), tuple(corpus.valid)
    if not valid:
        division, valid = _with_validation(division)
    said = lambda some: [Example(u.recording, phone_recognition.spoken(u.phones)) for u in some]
    parts = {"train": division.train, "valid": valid, "test": division.test}
    data = f"{corpus.split} of {corpus.data_dir}, {corpus.phones_are()}, divided {division.rule}"
    return gather({part: said(some) for part, some in parts.items()}, data=data)


def _rule(task: TaskName, wish: ComparisonOptions, corpus: Corpus) -> str:
    if task == "frames":
        text = "the phone at the centre of what the network's frame reads, silence too; linear "
        text += "classifiers of layers (0: what the first one reads) and of SUPERB's weighted sum"
    else:
        rates = ", ".join(f"{rate:g}" for rate in wish.of_recognition.learning_rates)
        text = "SUPERB's PR: phones without silence, greedy decoding, edit distances over lengths, "
        text += f"learning rate out of {rates}"
    return f"{text}; {corpus.phones_are()}"


def _with_validation(division: Division) -> tuple[Division, tuple[Labelled, ...]]:
    """Takes some of the training utterances to choose on."""
    chosen = divide((), division.train, share=_VALID_SHARE)
    return division._replace(train=chosen.train), chosen.test


def _that_fit(
    model: Pretrained,
    division: Division,
    valid: Sequence[Labelled],
    wish: ComparisonOptions,
    telling: Telling,
) -> tuple[Division, tuple[Labelled, ...], type]:
    """The utterances whose features can be held, and in which type."""
    parts = (division.train, division.test, tuple(valid))
    everyone = [u.recording for part in parts for u in part]
    kept, dtype = in_memory.room(everyone, model=model, max_bytes=wish.max_bytes, say=telling.say)
    ids = {recording.id for recording in kept}
    train, test, valid = (tuple(u for u in part if u.recording.id in ids) for part in parts)
    if not train or not test or (parts[2] and not valid):
        raise LabelError(
            f"--max_memory: {wish.max_bytes / 2**30:.2f} GiB hold the features of {len(kept)} "
            f"utterances, and so none of a part; expected room for more of {len(everyone)}"
        )
    return division._replace(train=train, test=test), valid, dtype


def _features(
    system: str, network: Pretrained, everyone: Sequence[Labelled], dtype: type, telling: Telling
) -> in_memory.Features:
    recordings = [utterance.recording for utterance in everyone]
    told = telling.stage(f"features of {NAMES[system]}", _seconds(recordings))
    if system == "mfcc":
        return in_memory.of_mfcc(recordings, model=network, progress=told)
    how = {"dtype": dtype, "lengths": "fitted", "progress": told}
    return in_memory.of_network(network, recordings, **how)


NAMES = {
    "codebook": "the network",
    "kmeans": "the network",
    "mfcc": "MFCC",
    "untrained": "the untrained network",
}


def summary(
    found: Mapping[TaskName, Sequence[Mapping[str, Any]]], validated: Validated | None = None
) -> str:
    """The best of each system side by side, as a table; PER is best where it is least.

    Args:
      found: Rows of each task.
      validated: The layer of the network's codes that counts, chosen on other speech; None takes
        the best on this.

    Returns:
      Lines of text.
    """
    metrics = {"units": ("pnmi", "PNMI", 1), "frames": ("accuracy", "frame accuracy", 1)}
    metrics["recognition"] = ("per", "phone error rate", -1)
    heads = {"codebook": "network", "mfcc": "MFCC", "untrained": "untrained network"}
    lines = [["", *heads.values()]]
    for task, rows in found.items():
        name, text, sign = metrics[task]
        cells = [text]
        for system in heads:
            own, by = [row for row in rows if row["system"] == system], ""
            if validated and (task, system) == ("units", "codebook"):
                own = [row for row in own if row["layer"] == validated.layer]
                by = f", chosen on {validated.split}"
            best = max(own, key=lambda row: sign * row[name])
            layer = best["layer"]
            where = {None: "", result_files.WEIGHTED: " (all layers)"}.get(
                layer, f" (layer {layer}{by})"
            )
            cells.append(f"{best[name]:.3f}{where}")
        lines.append(cells)
    widths = [max(20, *map(len, column)) for column in zip(*lines, strict=True)]
    padded = lambda line: (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    return "\n".join("  ".join(padded(line)).rstrip() for line in lines)
