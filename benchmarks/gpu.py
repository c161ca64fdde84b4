"""Every figure of one NVIDIA GPU, within a bound of minutes: bash benchmarks/gpu.sh [--rehearse].

Five parts, the most valuable first: parity with the golden numbers, the update in all its variants,
the same update in PyTorch, features against transformers, and the kernels that time goes to. Each
measurement is a process of its own with a time limit of its own. What it has said is written at
once: OUTPUT/PART.json has the rows so far, OUTPUT/results.md those of all parts as
benchmarks/RESULTS.md takes them, OUTPUT/errors.txt what the processes complained of. One that fails
says so in its row, and the next one runs. The exit code is 0 if all succeeded, 1 if any failed, and
2 if nothing could begin.

It needs jax, flax, optax, orbax, etils, safetensors and, for PyTorch's side, torch and
transformers; neither tensorflow nor ml_collections nor soundfile. Pure Python packages that a
machine without network lacks can come along as wheels, which Python imports as they are:

    pip download --no-deps --dest=wheels ml_collections
    bash benchmarks/gpu.sh --wheels=wheels

Compiled programs are kept in $JAX_COMPILATION_CACHE_DIR, or in the folder for temporary files: a
second visit to the machine does not compile anew, and its compile times say so.
"""

import argparse
import collections
import contextlib
import datetime
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import gpu_tables

PARTS = ("parity", "update", "peer", "features", "kernels")
LEAST_SECONDS = 15  # a process that gets less is not started
TRIES = 4  # of larger batches


class Job(NamedTuple):
    """One measurement: a process that prints its rows as lines of JSON.

    Attributes:
      part: One of `PARTS`, or 'device'.
      about: What its rows begin with, whether it succeeds or fails.
      command: Script in this folder and its arguments.
      seconds: That it may take.
    """

    part: str
    about: dict[str, Any]
    command: list[str]
    seconds: float


class Kit:
    """The rows so far, in memory and in the folder that they are written to."""

    def __init__(self, output: Path, *, about: dict[str, Any]):
        self.output, self.about = output, about
        self.rows: dict[str, list[dict]] = collections.defaultdict(list)
        output.mkdir(parents=True, exist_ok=True)
        (output / "errors.txt").write_text("")

    def add(self, part: str, row: dict) -> None:
        """Takes a row, and writes its part and the tables anew."""
        self.rows[part].append(row)
        if part in PARTS:
            found = self.about | {"rows": self.rows[part]}
            replace(self.output / f"{part}.json", json.dumps(found))
        replace(self.output / "results.md", gpu_tables.markdown(self.about, self.rows))

    def measure(self, job: Job, *, seconds: float, environment: dict[str, str]) -> bool:
        """Runs a job for so many seconds at most; whether it succeeded or the device refuses it."""
        limit, name = min(job.seconds, seconds), " ".join(map(str, job.about.values()))
        start = time.monotonic()
        if limit < LEAST_SECONDS:
            self.add(job.part, job.about | {"failed": "not started: the minutes were over"})
            return False
        print(f"{job.part} {name}: at most {limit:.0f} s ...", flush=True)
        rows = self.rows[job.part]
        before = len(rows)
        take = lambda row: self.add(job.part, job.about | flat(row))
        reason, complaints = follow(job.command, seconds=limit, environment=environment, take=take)
        with (self.output / "errors.txt").open("a") as file:
            file.write(f"--- {job.part} {name}: {reason or 'succeeded'}\n{complaints[-20_000:]}\n")
        if not reason and len(rows) == before:
            reason = "it printed no result"
        said = rows[-1].keys() if len(rows) > before else ()
        if "refused" in said:
            reason = ""
        elif reason and "out_of_memory" not in said:
            last = [line for line in complaints.splitlines() if line.strip()][-5:]
            self.add(job.part, job.about | {"failed": reason, "last_lines": last})
        took = time.monotonic() - start
        about = next((word for word in ("refused", "out_of_memory") if word in said), "done")
        print(f"{job.part} {name}: {reason or about} after {took:.0f} s", flush=True)
        return not reason

    def row(self, part: str, **about: Any) -> dict | None:
        """The first row of a part that has these fields and did not fail."""
        fits = lambda row: all(row.get(name) == value for name, value in about.items())
        return next((r for r in self.rows[part] if fits(r) and succeeded(r)), None)


def succeeded(row: dict) -> bool:
    """Whether a row has figures."""
    return not {"failed", "refused", "out_of_memory"} & row.keys()


def flat(row: dict) -> dict:
    """Of a row with one side alone, that side's figures beside the others."""
    return row if "torch" in row else row | row.pop("jax", {})


def replace(path: Path, text: str) -> None:
    """Writes a file so that it is never half there."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def follow(
    command: list[str],
    *,
    seconds: float,
    environment: dict[str, str],
    take: Callable[[dict], None],
) -> tuple[str, str]:
    """Runs a command and takes each line of JSON that it prints as soon as it is there.

    Args:
      command: Arguments of Python.
      seconds: After which it is killed, and all that it started.
      environment: Its variables.
      take: Called with each row.

    Returns:
      Why it failed ('' if it did not), and what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory() as name:
        said, complaints = Path(name) / "stdout", Path(name) / "stderr"
        with said.open("wb") as out, complaints.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                start_new_session=True,
            )
        deadline, late = time.monotonic() + seconds, False
        try:
            with said.open() as lines:
                rest = ""
                while True:
                    late = time.monotonic() > deadline
                    ended = late or process.poll() is not None
                    if late:
                        kill(process)
                    rest += lines.read()
                    *whole, rest = rest.split("\n")
                    for line in whole:
                        if row := read(line):
                            take(row)
                    if ended:
                        break
                    time.sleep(0.1)
        finally:
            kill(process)
        text = complaints.read_text(errors="replace")
    code = process.returncode
    if late:
        return f"killed at its limit of {seconds:.0f} s", text
    if code < 0:
        return f"ended by {signal.Signals(-code).name}", text
    memory = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    return (f"out of memory (exit code {code})" if memory else f"exit code {code}") * bool(
        code
    ), text


def read(line: str) -> dict | None:
    """The row that a line is; None of what else a process prints."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def kill(process: subprocess.Popen) -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Shapes(NamedTuple):
    """What is measured: arguments of the scripts."""

    update: list[str]  # of one update
    features: list[str]
    parity: list[str]
    remats: tuple[str, ...] = ("none", "dots", "full")
    patience: float = 1.0  # that the limits are multiplied by
    most_gib: float | None = None  # memory that larger batches are tried in; None: the device's


REAL = Shapes(
    update=["--shape=device", "--dtype=bfloat16"],
    features=["--shape=base", "--device=cuda"],
    parity=["--shape=base"],
)
TINY = Shapes(
    update=["--shape=tiny", "--dtype=bfloat16", "--rounds=2"],
    features=["--shape=tiny", "--seconds=1", "--batch_seconds=2", "--rounds=2"],
    parity=["--shape=tiny", "--updates=3"],
    remats=("none", "dots"),
    patience=8.0,  # CPUs that others use too
    most_gib=0.01,
)


def plan(kit: Kit, shapes: Shapes, *, attentions: list[str]) -> Iterator[Job]:
    """What is measured, the most valuable first; what comes later depends on what was found."""
    script = lambda name: str(HERE / name)
    yield Job("parity", {"of": "golden"}, [script("parity.py"), "golden"], 120)
    grid = [(attention, remat) for remat in shapes.remats for attention in attentions]
    first = [("xla", "dots"), *((a, "none") for a in attentions)]
    for attention, remat in first:
        yield update(shapes, attention, remat)
    best = fastest(kit)
    fields = [f"--{name}={best[name]}" for name in ("attention", "remat")]
    peer = [script("train_step.py"), *shapes.update, "--against=torch", *fields]
    yield Job("peer", {"peer": "compiled"}, [*peer, "--torch=compiled"], 150)
    if kit.row("peer", peer="compiled") is None:
        yield Job("peer", {"peer": "eager"}, [*peer, "--torch=eager"], 90)
    yield Job("features", {}, [script("features.py"), *shapes.features], 120)
    yield Job("kernels", {}, [script("kernels.py"), *shapes.update[:2], *fields], 90)
    dtypes = [script("parity.py"), "bfloat16", *shapes.parity]
    yield Job("parity", {"of": "bfloat16"}, dtypes, 120)
    for attention, remat in grid:
        if (attention, remat) not in first:
            yield update(shapes, attention, remat)
    yield from larger(kit, shapes)


def fastest(kit: Kit) -> dict:
    """The row of the fastest variant of the update; of none measured, the recipe's."""
    rows = [row for row in kit.rows["update"] if succeeded(row)]
    best = max(rows, key=lambda row: row["audio_per_s"], default=None)
    return best or {"attention": "xla", "remat": "dots"}


def update(shapes: Shapes, attention: str, remat: str, utterances: int | None = None) -> Job:
    """One variant of the update."""
    about: dict[str, Any] = {"attention": attention, "remat": remat}
    command = [str(HERE / "train_step.py"), *shapes.update]
    command += [f"--{name}={value}" for name, value in about.items()]
    if utterances:
        about["tried_utterances"] = utterances
        command.append(f"--utterances={utterances}")
        command += [f"--most_gib={shapes.most_gib}"] * bool(shapes.most_gib)
    return Job("update", about, command, 100)


def larger(kit: Kit, shapes: Shapes) -> Iterator[Job]:
    """Looks for the largest batch that fits, from what the compiler says of the first one."""
    row = fastest(kit)
    if "needed_gib" not in row:
        return
    limit = shapes.most_gib or row["device_gib"]
    if limit is None:
        return
    each = (row["needed_gib"] - row["state_gib"]) / row["utterances"]
    fits, too_many = row["utterances"], None
    tried = max(int((limit - row["state_gib"]) / each), fits + 1)
    for _ in range(TRIES):
        job = update(shapes, row["attention"], row["remat"], tried)
        yield job
        if kit.row("update", **job.about):
            fits = tried
        elif gpu_tables.is_too_large(kit.rows["update"][-1]):
            too_many = tried
        else:  # no time is left, or it failed otherwise
            return
        tried = (fits + too_many) // 2 if too_many else fits + max(fits // 8, 1)
        if tried in (fits, too_many):
            return


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Variables of the processes."""
    wheels = sorted(map(str, arguments.wheels.glob("*.whl"))) if arguments.wheels else []
    paths = [str(HERE.parent), *wheels, os.environ.get("PYTHONPATH", "")]
    compiled = Path(tempfile.gettempdir()) / "dinosr_jax_compiled"
    kept = {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(compiled)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92"),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }
    rehearsed = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return os.environ | kept | (rehearsed if arguments.rehearse else {})


def probe() -> None:
    """The first process: prints what jax finds, and which kinds of attention there are."""
    import jax

    from benchmarks.train_step import choices

    device = jax.devices()[0]
    found = {"device": device.device_kind, "platform": device.platform}
    print(json.dumps(found | {"attentions": choices("model.attention")}))


def describe() -> dict[str, str]:
    """Driver, versions and date, without touching the device."""
    about = {"date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        about["driver"] = found.stdout.strip()
    about["python"] = sys.version.split()[0]
    for name in ("jax", "jaxlib", "flax", "torch", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            about[name] = importlib.metadata.version(name)
    return about


def run(
    kit: Kit,
    jobs: Iterator[Job],
    *,
    minutes: float,
    environment: dict[str, str],
    patience: float = 1.0,
) -> int:
    """Runs jobs within so many minutes.

    Args:
      kit: Takes the rows.
      jobs: In their order.
      minutes: For all of them.
      patience: That their own limits are multiplied by.
      environment: Variables of the processes.

    Returns:
      How many failed; what the device refuses, and larger batches that do not fit, do not count.
    """
    deadline, failed = time.monotonic() + 60 * minutes, 0
    for job in jobs:
        job = job._replace(seconds=job.seconds * patience)
        left = deadline - time.monotonic()
        done = kit.measure(job, seconds=left, environment=environment)
        failed += not done and "tried_utterances" not in job.about
    return failed


def main() -> None:
    """Measures everything, and prints the tables."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what runs; the rows are there
    variables = environment(arguments)
    kit = Kit(arguments.output, about=describe())
    probe = Job("device", {}, ["-c", "from benchmarks import gpu; gpu.probe()"], 60)
    start = time.monotonic()
    if not kit.measure(probe, seconds=60, environment=variables):
        last = kit.rows["device"][-1]
        sys.exit(f"error: jax does not start: {last['failed']}\n" + "\n".join(last["last_lines"]))
    found = kit.rows["device"][0]
    kit.about |= {name: found[name] for name in ("device", "platform")}
    if arguments.rehearse:
        kit.about["rehearsal"] = "at tiny shapes on a CPU (no figure counts)"
    if found["platform"] != "gpu" and not arguments.rehearse:
        print(
            f"error: jax sees no GPU, only {found['device']}; install jax[cuda13], or rehearse on "
            "the CPU with --rehearse",
            file=sys.stderr,
        )
        sys.exit(2)
    shapes = TINY if arguments.rehearse else REAL
    jobs = plan(kit, shapes, attentions=found["attentions"])
    minutes = arguments.minutes - (time.monotonic() - start) / 60
    how = {"environment": variables, "patience": shapes.patience}
    failed = run(kit, jobs, minutes=minutes, **how)
    print((arguments.output / "results.md").read_text())
    print(f"{failed} failed; written to {arguments.output}" if failed else arguments.output)
    sys.exit(1 if failed else 0)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (default 9)")
    given = os.environ.get("OUT", "runs/gpu")
    parser.add_argument(
        "--output", type=Path, default=Path(given), help="(default: $OUT, runs/gpu)"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--wheels", type=Path, help="folder of pure Python wheels to import from")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes: found {arguments.minutes:g}, expected more than 0")
    if arguments.wheels and not list(arguments.wheels.glob("*.whl")):
        parser.error(f"--wheels: found no .whl in {arguments.wheels}")
    return arguments


if __name__ == "__main__":
    main()
