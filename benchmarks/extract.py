"""Features of FLAC files, against eager PyTorch: python benchmarks/extract.py.

Both sides read the same files and write one .npy [T, D] each, of the last layer, in float32, with
random weights of the published shape. PyTorch is `Data2VecAudioModel` of transformers (which needs
`pip install torch transformers`), with what is faster of one recording at a time and padded
batches in order of length under the same budget of seconds. Both decode ahead in threads. In turn
(JAX, PyTorch, JAX, ...), each side in a process of its own that sleeps in the turns of the other.
A first pass, which compiles on one side and chooses the batches on the other, is timed apart. The
utterances are cut from `--source`, with about LibriSpeech's lengths.

Threads of PyTorch that wait for each other spin, and seem to compute, where other jobs hold the
cores: --cores=1 compares on one core, where CPU seconds are those of computing.
"""

import argparse
import collections
import concurrent.futures
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

Pass = Callable[[Path], None]  # reads all files, writes into a folder


def make_jax_pass(files: Path, arguments: argparse.Namespace) -> dict[str, Pass]:
    """Our extraction, as the command does it."""
    import jax

    from benchmarks.train_step import make_config
    from dinosr_jax.inference.features.writer import extract_files
    from dinosr_jax.inference.forward import batched
    from dinosr_jax.inference.pretrained import Pretrained
    from dinosr_jax.training.optimizer import make_optimizer
    from dinosr_jax.training.state import init_state

    jax.config.update("jax_platforms", "cpu")
    config = make_config(arguments.shape)
    state = init_state(config, optimizer=make_optimizer(config))
    model = Pretrained(
        config,
        params=state.params,
        teacher_params=state.teacher_params,
        codebook=state.codebook,
    )
    options = batched.Options(batch_seconds=arguments.batch_seconds)
    layer = arguments.layer or config.model.num_layers
    run = lambda folder: extract_files(model, [files], output=folder, layer=layer, options=options)
    return {"batches": run}


def make_torch_pass(files: Path, arguments: argparse.Namespace) -> dict[str, Pass]:
    """That of transformers, one at a time and in batches."""
    try:
        import torch
        from transformers import Data2VecAudioModel

        from benchmarks.torch_peer import model_config
    except ImportError as error:
        sys.exit(f"error: the other side needs {error.name}; pip install torch transformers")
    import soundfile

    from benchmarks.train_step import make_config

    torch.manual_seed(0)
    model = Data2VecAudioModel(model_config(make_config(arguments.shape).model)).eval()
    paths = sorted(files.glob("*.flac"), key=lambda path: -soundfile.info(path).frames)

    def read(path: Path) -> np.ndarray:
        wave = soundfile.read(path, dtype="float32")[0]
        return (wave - wave.mean()) / np.sqrt(wave.var() + 1e-5)

    def compute(folder: Path, budget: float) -> None:
        with torch.inference_mode(), concurrent.futures.ThreadPoolExecutor(2) as pool:
            for batch in _batches(paths, ahead(pool, read, paths), budget):
                longest = max(len(wave) for _, wave in batch)
                audio = torch.zeros(len(batch), longest)
                mask = torch.zeros(len(batch), longest, dtype=torch.long)
                for row, (_, wave) in enumerate(batch):
                    audio[row, : len(wave)] = torch.from_numpy(wave)
                    mask[row, : len(wave)] = 1
                equal = bool(mask.all())
                found = model(audio, attention_mask=None if equal else mask).last_hidden_state
                for row, (path, wave) in enumerate(batch):
                    frames = int(model._get_feat_extract_output_lengths(len(wave)))
                    np.save(folder / f"{path.stem}.npy", found[row, :frames].numpy())

    def run(budget: float) -> Pass:
        return lambda folder: (folder.mkdir(), compute(folder, budget))[1]

    return {"one at a time": run(0.0), "padded batches": run(arguments.batch_seconds)}


def ahead(pool: Any, read: Callable, paths: list[Path]) -> Iterator[np.ndarray]:
    """Decodes in threads, eight files ahead."""
    waiting: collections.deque = collections.deque()
    for path in paths:
        waiting.append(pool.submit(read, path))
        if len(waiting) > 8:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(paths: list[Path], waves: Iterator[np.ndarray], budget: float) -> Iterator[list]:
    """Neighbours, as many as the budget of seconds holds when padded; at least one."""
    batch: list[tuple[Path, np.ndarray]] = []
    for path, wave in zip(paths, waves, strict=True):
        longest = max(len(wave), len(batch[0][1]) if batch else 0)
        if batch and longest * (len(batch) + 1) > budget * 16_000:
            yield batch
            batch = []
        batch.append((path, wave))
    yield batch


def serve(side: str, arguments: argparse.Namespace, scratch: Path, pipe: Any) -> None:
    """Child process of a side: a first pass of each way, then one pass of the best a message."""
    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    make = {"jax": make_jax_pass, "torch": make_torch_pass}[side]
    ways = make(scratch / "audio", arguments)
    first = {}
    for number, (name, run) in enumerate(ways.items()):
        first[name] = timed(run, scratch / f"{side}_first_{number}")
    best = min(first, key=lambda name: first[name][1])
    pipe.send((best, first))
    number = 0
    while pipe.recv():
        pipe.send(timed(ways[best], scratch / f"{side}_{number}"))
        number += 1


def timed(run: Pass, folder: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    start, start_cpu = time.perf_counter(), time.process_time()
    run(folder)
    return time.perf_counter() - start, time.process_time() - start_cpu


def write_utterances(source: Path, folder: Path, *, seconds: float) -> float:
    """Writes FLAC files of 2 to 16.5 s, most of 12 to 16; their seconds together."""
    import soundfile

    speech = soundfile.read(sorted(source.glob("*.ogg"))[0], dtype="float32")[0]
    random = np.random.default_rng(0)
    folder.mkdir()
    written = 0.0
    for number in range(10_000):
        length = random.uniform(12, 16.5) if random.random() < 0.65 else random.uniform(2, 12)
        start = random.integers(0, len(speech) - 17 * 16_000)
        cut = speech[start : start + int(length * 16_000)]
        soundfile.write(folder / f"{number:04}.flac", cut, 16_000, subtype="PCM_16")
        written += len(cut) / 16_000
        if written >= seconds:
            break
    return written


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["base", "small", "waveform"], default="base")
    parser.add_argument("--source", type=Path, default=ROOT / "data/embedded", help="of .ogg files")
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio a pass")
    parser.add_argument("--batch_seconds", type=float, default=16.0, help="budget of either side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layer", type=int, help="of ours (default: the last, as PyTorch's)")
    parser.add_argument("--cores", type=int, help="(default: all); 1 where others are at work")
    return parser.parse_args()


def main() -> None:
    """Times the sides in turn and reports."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        seconds = write_utterances(arguments.source, scratch / "audio", seconds=arguments.seconds)
        measured, first = time_in_turn(arguments, scratch)
        count = len(list((scratch / "audio").iterdir()))
        check(scratch / "jax_0", scratch / "torch_0", count=count)
    print(f"{arguments.shape}: {count} FLAC files, {seconds:.0f} s of audio, float32")
    report(seconds, measured, first)


def check(ours: Path, theirs: Path, *, count: int) -> None:
    """Exits unless both sides wrote all files, finite and of the same shapes."""
    names = sorted(path.name for path in ours.glob("*.npy"))
    for name in names:
        one, other = np.load(ours / name), np.load(theirs / name)
        if one.shape != other.shape or not (np.isfinite(one) & np.isfinite(other)).all():
            sys.exit(f"error: {name}: found {one.shape} and {other.shape}, or numbers not finite")
    if len(names) != count:
        sys.exit(f"error: {len(names)} of {count} files were written")


def time_in_turn(arguments: argparse.Namespace, scratch: Path) -> tuple[dict, dict]:
    """(Wall, CPU) of every round of either side, and (best way, first passes) of either side."""
    context, pipes, first = multiprocessing.get_context("spawn"), {}, {}
    processes: list[Any] = []
    for side in ("jax", "torch"):  # one after the other: compiling would disturb the next
        pipes[side], theirs = context.Pipe()
        how = {"args": (side, arguments, scratch, theirs), "daemon": True}
        processes.append(context.Process(target=serve, **how))
        processes[-1].start()
        theirs.close()
        try:
            first[side] = pipes[side].recv()
        except EOFError:
            sys.exit(f"error: {side} did not start; see above")
    measured: dict[str, list] = {side: [] for side in pipes}
    for _ in range(arguments.rounds):
        for side, pipe in pipes.items():
            pipe.send(True)
            measured[side].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()  # killed at exit, it would dump its stacks
    return measured, first


def report(seconds: float, measured: dict[str, list], first: dict) -> None:
    """Prints a table, and the same as one line of JSON."""
    result: dict[str, Any] = {"audio_seconds": round(seconds, 1)}
    titles = ["median s", "least s", "CPU s", "least CPU s", "audio s/s"]
    print(f"{'side':22}" + "".join(f"{title:>13}" for title in titles))
    for side, times in measured.items():
        (median, cpu), (least, least_cpu) = np.median(times, axis=0), np.min(times, axis=0)
        numbers = {"median": median, "least": least, "cpu": cpu, "least_cpu": least_cpu}
        result[side] = {name: round(float(value), 2) for name, value in numbers.items()}
        best, passes = first[side]
        result[side] |= {"way": best, "audio_per_s": round(seconds / median, 2)}
        result[side]["first"] = {
            way: {"wall": round(wall, 1), "cpu": round(cpu, 1)}
            for way, (wall, cpu) in passes.items()
        }
        row = [f"{value:.2f}" for value in numbers.values()] + [f"{seconds / median:.1f}"]
        print(f"{side + ', ' + best:22}" + "".join(f"{cell:>13}" for cell in row))
    names = ("median", "least", "cpu", "least_cpu")
    ratios = {name: round(result["torch"][name] / result["jax"][name], 2) for name in names}
    print("PyTorch's times over ours: " + ", ".join(f"{k} {v}" for k, v in ratios.items()))
    print(json.dumps(result | {"ratio": ratios}))


if __name__ == "__main__":
    main()
