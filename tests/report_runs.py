"""Runs with realistic files, as training and evaluation leave them, for the tests of the report."""

import json
import math
from pathlib import Path

import numpy as np

from dinosr_jax.config import published_recipe, to_text

PHONES = (
    "SIL AH N T S IH D L R IY K EH DH M Z AE ER P W AY F EY AA HH UW B V OW AO NG SH AW TH G "
    "CH Y UH JH OY ZH"
).split()

HOSTILE = ("<script>console.error(1)</script>", "\"&'$x_{1}$ \U0001f600")


def counts_of(rng, *, clarity, units=64, unused=5, phones=PHONES):
    """[P, U]: every unit has a phone of its own, to a degree; the last ones never occur."""
    frequency = np.exp(-0.09 * np.arange(len(phones)))
    table = rng.gamma(0.3, 1.0, (len(phones), units)) * frequency[:, None]
    own = rng.integers(0, len(phones), units)
    table[own, np.arange(units)] += clarity * table.sum(0)
    table = np.round(table * rng.uniform(50, 400, units)).astype(int)
    table[:, units - unused :] = 0
    return table


def quality_of(table):
    """PNMI and its like of a table [P, U], in plain NumPy."""
    p = table / table.sum()
    entropy = lambda q: -np.sum(q[q > 0] * np.log2(q[q > 0]))
    information = entropy(p.sum(0)) + entropy(p.sum(1)) - entropy(p)
    return {
        "phone_purity": float(p.max(0).sum()),
        "cluster_purity": float(p.max(1).sum()),
        "pnmi": float(information / entropy(p.sum(1))),
        "perplexity": float(2 ** entropy(p.sum(0))),
        "units_in_use": int((table.sum(0) > 0).sum()),
        "num_units": table.shape[1],
        "bit_rate": 181.4,
        "frames": int(table.sum()),
    }


def record_of(step, *, books, size, evaluated):
    """A line of metrics.jsonl."""
    record = {"step": step, "learning_rate": 1e-3, "ema_decay": 0.999, "audio_seconds": 24.1}
    record |= {"gradient_norm": 1.0, "parameter_norm": 57.0, "update_norm": 0.07, "epoch": 1.5}
    record |= {"audio_seconds_per_second": 40.0, "teacher_std": 0.8, "feature_encoder_std": 0.3}
    progress = 1 - math.exp(-step / 400)
    values = {
        "loss": 4.16 - 1.2 * progress,
        "accuracy": 0.02 + 0.2 * progress,
        "top_code_share": 0.04,
        "target_perplexity": size * (0.55 + 0.1 * progress),
        "prediction_perplexity": size * (0.5 + 0.1 * progress),
        "codeword_use": 0.8,
        "position_information": 0.2,
    }
    held_out = values | {"position_information": 0.04, "pnmi": 0.05 + 0.4 * progress}
    held_out |= {"phone_purity": 0.5, "loudness_information": 0.1, "speaker_information": 0.03}
    for prefix, fields in (("", values), ("eval_", held_out if evaluated else {})):
        for name, value in fields.items():
            record[prefix + name] = value
            record |= {f"{prefix}{name}_{k}": value * (1 - 0.06 * k) for k in range(books)}
    return record


def write_training(folder, *, layers=4, books=3, size=64, steps=800, every=10):
    """config.json and metrics.jsonl of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    config = published_recipe()
    config.workdir, config.num_steps = str(folder), steps
    config.model.update(num_layers=layers, num_codebooks=books, codebook_size=size, width=128)
    config.model.conv_layers = ((64, 10, 5),) + ((64, 3, 2),) * 4 + ((64, 2, 2),) * 2
    config.data.update(data_dir="data/prepared/embedded", dataset="audio_folder")
    config.data.update(train_split="train", eval_split="validation")
    (folder / "config.json").write_text(to_text(config))
    lines = (
        json.dumps(record_of(step, books=books, size=size, evaluated=step % (10 * every) == 0))
        for step in range(every, steps + 1, every)
    )
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def result_of(kind, rows, **fields):
    """A file of results."""
    return {
        "kind": kind,
        "command": f"python -m dinosr_jax evaluate run RUN DATA --task={kind}",
        "date": "2026-11-20T10:00:00+00:00",
        "versions": {"dinosr_jax": "0.1.0", "jax": "0.10.2"},
        "checkpoint": "runs/x",
        "step": 800,
        "data": "embedded corpus, English test: 130 utterances, 6.4 minutes, 1 speaker",
        "rule": "units repeated to 10 ms, both trimmed to the shorter",
        "rows": rows,
    } | fields


def write_result(folder, name, kind, rows, **fields):
    """FOLDER/evaluation/NAME.json."""
    path = Path(folder) / "evaluation" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result_of(kind, rows, **fields)))


def write_evaluation(folder, *, layers=4, books=3, size=64, clarity=1.5, phones=PHONES):
    """All results of a run, and an utterance."""
    rng = np.random.default_rng(0)
    own = range(layers - books + 1, layers + 1)
    units = []
    systems = [("codebook", layer, clarity) for layer in own] + [("mfcc", None, 0.9)]
    systems += [("untrained", layer, 0.1) for layer in range(1, layers + 1)]
    for system, layer, degree in systems:
        table = counts_of(rng, clarity=degree, units=size, phones=phones)
        row = {"system": system, "layer": layer, **quality_of(table), "counts": table.tolist()}
        units.append(row)
    frames = [{"system": "codebook", "layer": k, "accuracy": 0.4 + 0.04 * k} for k in own]
    frames += [{"system": "codebook", "layer": "weighted", "accuracy": 0.6}]
    frames += [{"system": "mfcc", "layer": None, "accuracy": 0.45}]
    frames += [{"system": "untrained", "layer": "weighted", "accuracy": 0.3}]
    pers = (("codebook", "weighted", 0.31), ("mfcc", None, 0.52), ("untrained", "weighted", 0.8))
    recognition = [
        {"system": s, "layer": layer, "per": per, "learning_rate": 0.01} for s, layer, per in pers
    ]
    abx = [
        {"system": system, "layer": layer, "error": error + 0.01 * (speaker == "across")}
        | {"speaker": speaker, "context": context, "cells": 1200}
        for speaker in ("within", "across")
        for context in ("triphone", "any")
        for system, layer, error in (
            *(("codebook", k, 0.2 - 0.01 * k) for k in own),
            ("mfcc", None, 0.18),
            ("untrained", 1, 0.3),
        )
    ]
    write_result(folder, "units", "units", units, phones=list(phones))
    for kind, rows in (("abx", abx), ("frames", frames), ("recognition", recognition)):
        write_result(folder, kind, kind, rows)
    write_utterance(
        Path(folder) / "evaluation" / "utterance.npz",
        rng,
        layers=list(own),
        size=size,
        phones=phones,
    )
    return folder


def write_utterance(path, rng, *, layers, size, phones=PHONES, seconds=3.7, **changed):
    """An utterance of tones, a phone each, with codes that follow them."""
    samples = int(16_000 * seconds)
    ends = np.cumsum(rng.uniform(0.05, 0.18, 60))
    ends = np.append(ends[ends < seconds - 0.05], seconds)
    labels = rng.integers(0, len(phones), ends.size)
    times = np.arange(samples) / 16_000
    which = np.minimum(np.searchsorted(ends, times, side="right"), ends.size - 1)
    waveform = np.sin(2 * np.pi * (200 + 90 * labels[which]) * times) * (labels[which] > 0)
    waveform += 0.02 * rng.standard_normal(samples)
    frames = (samples - 400) // 320 + 1
    heard = labels[which[(200 + 320 * np.arange(frames)).clip(max=samples - 1)]]
    codes = np.stack([(heard * (k + 1) + rng.integers(0, 2, frames)) % size for k in range(9)])
    fields = {
        "waveform": waveform.astype(np.float32),
        "codes": codes[: len(layers)],
        "layers": np.asarray(layers),
        "phone_starts": np.append(0.0, ends[:-1]),
        "phone_ends": ends,
        "phone_labels": np.asarray([phones[p] for p in labels]),
        "id": "asterisk_en/activated",
        "text": f"activated {HOSTILE[0]}",
    }
    np.savez(path, **(fields | changed))
