"""What a run has written down, read for a report: nothing is computed, and nothing is changed."""

import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.errors import UserError
from dinosr_jax.evaluation.result_files import ResultError, read_result
from dinosr_jax.training.logs import read_records

_MOST_RECORDS = 4000  # more than a chart can show
_MOST_SECONDS = 60.0
SAMPLE_RATE = 16_000


class ReportError(UserError):
    """There is nothing to report of, or it cannot be written; the message says what to do."""


class ExampleUtterance(NamedTuple):
    """One utterance with its phones and codes. N layers, T frames, S samples, n phones."""

    name: str
    text: str
    waveform: np.ndarray  # [S] float32, 16 kHz
    codes: np.ndarray  # [N, T] int
    layers: np.ndarray  # [N] int
    phone_starts: np.ndarray  # [n] seconds
    phone_ends: np.ndarray  # [n] seconds
    phone_labels: list[str]


class RunFiles(NamedTuple):
    """A run as its files tell it."""

    folder: Path
    config: dict[str, Any]  # {} where there is none
    records: list[dict[str, Any]]  # finite numbers and not; thinned out where they are many
    num_lines: int  # of metrics.jsonl
    results: list[dict[str, Any]]
    utterance: ExampleUtterance | None
    environments: list[dict[str, Any]]  # where it ran, a start each
    checkpoints: list[int]
    problems: list[str]  # files that cannot be read

    def value(self, *path: str) -> Any:
        """A field of the configuration; None where it is not known."""
        field: Any = self.config
        for name in path:
            field = field.get(name) if isinstance(field, dict) else None
        return field

    def whole(self, *path: str) -> int | None:
        """A field of the configuration that is a whole number above 0."""
        number = self.value(*path)
        return number if type(number) is int and number > 0 else None

    def codebook_layers(self) -> list[int]:
        """The layer of every codebook, from 1; [] where they are not known."""
        layers, books = self.whole("model", "num_layers"), self.whole("model", "num_codebooks")
        if not layers or not books or books > layers or books > 1000:
            return []
        return list(range(layers - books + 1, layers + 1))

    def codebook_names(self) -> list[str]:
        """'layer 5', ... of every codebook, or 'codebook 0', ... where the layers are not known."""
        known = [f"layer {layer}" for layer in self.codebook_layers()]
        return known or [f"codebook {k}" for k in range(1000)]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Results of a kind, the newest first."""
        results = [result for result in self.results if result["kind"] == kind]
        return sorted(results, key=lambda result: str(result.get("date", "")), reverse=True)

    def last_step(self) -> int | None:
        """The last recorded update; the newest checkpoint where nothing is recorded."""
        if self.records:
            return self.records[-1]["step"]
        return self.checkpoints[-1] if self.checkpoints else None


def read_run(folder: Path) -> RunFiles:
    """Reads what there is of a run, or of its evaluations alone; lists what is broken.

    Raises ReportError where the folder is no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ReportError(f"{folder} is not there, or no folder; give the workdir of a run")
    named = ("config.json", "metrics.jsonl", "evaluation")
    if not any((folder / name).exists() for name in named):
        raise ReportError(
            f"{folder} is no run: it has neither {', '.join(named[:-1])} nor {named[-1]}/; give "
            "the workdir that main.py --workdir=... or `import --output=...` wrote"
        )
    problems: list[str] = []
    records, num_lines = _records(folder / "metrics.jsonl", problems)
    return RunFiles(
        folder=folder,
        config=_config(folder / "config.json", problems),
        records=records,
        num_lines=num_lines,
        results=_results(folder / "evaluation", problems),
        utterance=_utterance(folder / "evaluation" / "utterance.npz", problems),
        environments=_environments(folder / "environment.jsonl", problems),
        checkpoints=sorted(
            int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdecimal()
        ),
        problems=problems,
    )


def numbers(row: dict[str, Any], name: str) -> float | None:
    """A finite number of a row or a record, or None."""
    value = row.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _config(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        problems.append("config.json is missing: the configuration of the run is not known")
        return {}
    try:
        config = json.loads(path.read_bytes())
        if isinstance(config, dict):
            return config
        problems.append(f"config.json holds a {type(config).__name__}, expected fields")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"config.json cannot be read ({error}); it was left out")
    return {}


def _records(path: Path, problems: list[str]) -> tuple[list[dict[str, Any]], int]:
    if not path.exists():
        return [], 0
    try:
        records = read_records(path, at_most=_MOST_RECORDS)
        with path.open("rb") as file:
            lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except OSError as error:
        problems.append(f"metrics.jsonl cannot be read ({error.strerror}); there are no curves")
        return [], 0
    if lines and not records:
        problems.append("metrics.jsonl has no line that is a record; there are no curves")
    return sorted(records, key=lambda record: record["step"]), lines


def _environments(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return read_records(path)
    except OSError as error:
        problems.append(f"environment.jsonl cannot be read ({error.strerror})")
        return []


def _results(folder: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The results in a folder; a broken file is a problem, and the others are read."""
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = read_result(path)
        except ResultError as error:
            problems.append(f"a file of results was left out: {str(error)[:400]}")
            continue
        if result is not None:
            results.append(result)
    return results


def _utterance(path: Path, problems: list[str]) -> ExampleUtterance | None:
    """The utterance to show, checked; None, with a problem where it is there but cannot be used."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed")  # it may be of any size unpacked
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
        utterance = ExampleUtterance(
            name=str(fields["id"]),
            text=str(fields.get("text", "")),
            waveform=np.asarray(fields["waveform"], np.float32),
            codes=np.asarray(fields["codes"]).astype(np.int64, casting="safe"),
            layers=np.asarray(fields["layers"]).astype(np.int64, casting="safe"),
            phone_starts=np.asarray(fields["phone_starts"], np.float64),
            phone_ends=np.asarray(fields["phone_ends"], np.float64),
            phone_labels=[str(label) for label in fields["phone_labels"]],
        )
        wrong = _wrong(utterance)
    except KeyError as error:
        wrong = f"it has no field {error}"
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        wrong = str(error) or type(error).__name__
    if wrong:
        problems.append(f"evaluation/{path.name} cannot be used: {wrong}; run evaluate run again")
        return None
    return utterance


def _wrong(u: ExampleUtterance) -> str:
    """What does not fit in an utterance, or ''."""
    seconds = u.waveform.size / SAMPLE_RATE
    phones: Sequence[Any] = (u.phone_starts, u.phone_ends)
    if u.waveform.ndim != 1 or not np.isfinite(u.waveform).all():
        return f"the waveform {u.waveform.shape} is not one row of finite numbers"
    if not 0.05 <= seconds <= _MOST_SECONDS:
        return f"it is {seconds:.2f} s long, expected 0.05 to {_MOST_SECONDS:g} s"
    if u.codes.ndim != 2 or not u.codes.size or u.codes.shape[0] != u.layers.size:
        return f"codes {u.codes.shape} do not fit {u.layers.size} layers"
    if any(p.shape != (len(u.phone_labels),) or not np.isfinite(p).all() for p in phones):
        return f"starts and ends do not fit {len(u.phone_labels)} phones"
    return ""
