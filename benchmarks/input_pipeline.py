"""How fast the input pipeline is, against soundfile alone in the same run.

    python benchmarks/input_pipeline.py [--source=FOLDER] [--workers=2] [--rounds=3] [--epochs=5]

Speech of `--source` is joined and cut into utterances as long as those of LibriSpeech, stored as
FLAC, and prepared with both encodings. In turn, with as many threads each: soundfile decodes the
files and does nothing else; the pipeline reads, decodes, normalises, crops and stacks them. Then
the time that a step waits for its batch is measured at a given demand, and the memory over epochs.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
import types
from concurrent import futures
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import soundfile

from dinosr_jax.data import audio
from dinosr_jax.data.batches.pipeline import SpeechData, open_split
from dinosr_jax.data.prepare import audio_folder
from dinosr_jax.data.prepare.sources import find_files, is_audio


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, default=ROOT / "data/embedded")
    parser.add_argument("--workers", type=int, default=2, help="threads of either side")
    parser.add_argument("--utterances", type=int, default=500)
    parser.add_argument("--batch_seconds", type=float, default=100.0)
    parser.add_argument("--max_ladder_loss", type=float, default=1.0, help="0.03 in configs/base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="epochs over which memory is watched")
    return parser.parse_args()


def write_utterances(source: Path, folder: Path, *, count: int) -> float:
    """Writes FLAC files of 2 to 17 s, most of 12 to 16 s; their seconds together."""
    paths = [source / path for path in find_files(source) if is_audio(path)]
    speech = np.concatenate([audio.load(path, name=path.name) for path in paths])
    random = np.random.Generator(np.random.Philox(key=0))
    long = random.random(count) < 0.65
    seconds = np.where(long, random.uniform(12, 16.5, count), random.uniform(2, 12, count))
    lengths = (seconds * audio.SAMPLE_RATE).astype(int)
    for number, length in enumerate(lengths):
        start = random.integers(0, len(speech) - length)
        name = folder / f"{number:05d}.flac"
        name.write_bytes(audio.encode_flac(speech[start : start + length]))
    return lengths.sum() / audio.SAMPLE_RATE


def soundfile_alone(paths: list[Path], *, workers: int) -> None:
    """Decodes the files in threads, and drops the samples."""
    with futures.ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda path: len(soundfile.read(path, dtype="float32")[0]), paths):
            pass


def one_epoch(data: SpeechData, *, start: int, pause: float = 0.0) -> tuple[float, list[float]]:
    """Takes the batches of an epoch, `pause` seconds apart; seconds of audio, and of each wait."""
    seconds, waits = 0.0, []
    with data.batches(start, data.plan.num_batches) as batches:
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return seconds, waits
            waits.append(time.perf_counter() - before)
            seconds += batch.waveforms.size / audio.SAMPLE_RATE
            time.sleep(pause)


def timed(function, *args, **kwargs):
    """What a function gives, wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def memory() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def open_data(data_dir: Path, arguments: argparse.Namespace) -> SpeechData:
    """The pipeline of configs/base.py, with another budget and number of threads."""
    fields = dict(
        data_dir=str(data_dir), dataset="audio_folder", min_seconds=2.0, max_seconds=20.0,
        max_batch_seconds=arguments.batch_seconds, max_rungs=12, batch_multiple=1,
        max_ladder_loss=arguments.max_ladder_loss,
        num_workers=arguments.workers, prefetch_batches=2,
    )  # fmt: skip
    return open_split(types.SimpleNamespace(**fields), split="train", seed=0)


def main() -> None:
    """Prints the rates of all sides, the waits and the memory."""
    arguments = parse()
    workers = arguments.workers
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        source.mkdir()
        total = write_utterances(arguments.source, source, count=arguments.utterances)
        print(f"{arguments.utterances} utterances, {total / 3600:.2f} h; {workers} threads")
        sides = {}
        for encoding in ("original", "pcm16"):
            data_dir = Path(scratch, encoding)
            with contextlib.redirect_stdout(io.StringIO()):
                audio_folder.prepare(source, data_dir=data_dir, encoding=encoding)
            sides[encoding] = open_data(data_dir, arguments)
        print(sides["original"].plan.summary().split("\n", 1)[0])
        print("\n".join(sides["original"].plan.summary().split("\n")[-2:]))
        paths = sorted(source.iterdir())
        rates: dict[str, list[tuple[float, float]]] = {}
        for number in range(arguments.rounds + 1):  # the first warms up
            _, wall, cpu = timed(soundfile_alone, paths, workers=workers)
            found = {"soundfile alone": (total / wall, total / cpu)}
            for name, data in sides.items():
                start = number * data.plan.num_batches
                (seconds, _), wall, cpu = timed(one_epoch, data, start=start)
                found[name] = (seconds / wall, seconds / cpu)
            if number:
                for name, rate in found.items():
                    rates.setdefault(name, []).append(rate)
        print("audio seconds a second: median (lowest to highest); a CPU second; against soundfile")
        base = [wall for wall, _ in rates["soundfile alone"]]
        for name, found in rates.items():
            walls, cpus = zip(*found, strict=True)
            ratio = statistics.median(a / b for a, b in zip(walls, base, strict=True))
            print(
                f"  {name:16s} {statistics.median(walls):7.0f} ({min(walls):.0f} to "
                f"{max(walls):.0f})  {statistics.median(cpus):7.0f}  {ratio:.2f}"
            )
        for name, data in sides.items():
            rate = statistics.median(wall for wall, _ in rates[name])
            mean = total / data.plan.num_batches
            for share in (0.5, 0.8):
                pause = mean / (share * rate)
                _, waits = one_epoch(data, start=0, pause=pause)
                late = np.array(waits[2:]) * 1e3  # the first are made while nothing else runs
                print(
                    f"{name}: steps of {pause:.2f} s, {share:.0%} of the rate: a step waits "
                    f"{late.mean():.1f} ms on average, {late.max():.1f} at most"
                )
        data, held = sides["original"], []
        for epoch in range(arguments.epochs):
            one_epoch(data, start=epoch * data.plan.num_batches)
            held.append(memory())
        print("resident MiB after each epoch:", " ".join(f"{mib:.0f}" for mib in held))


if __name__ == "__main__":
    main()
