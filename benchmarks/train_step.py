"""Time of one update: python benchmarks/train_step.py [--shape=S] [--steps=N] [--torch] [--both].

With --torch the same update in eager PyTorch, on the encoder of `transformers`, is timed in turn
(JAX, PyTorch, JAX, ...), so that both see the same machine; the ratio is that of the medians. Each
side has a process of its own, with its own defaults, and sleeps in the other's turns: in one
process each takes threads, allocator and caches from the other. It needs
`pip install torch transformers`. Both sides compute in float32.
With --both the update is timed with the layers scanned and unrolled (config.model.scan_layers).
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ml_collections
import numpy as np

from configs import quickstart
from dinosr_jax.config import parse, published_recipe
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.training import sharding
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state, stream_key
from dinosr_jax.training.step import draw_mask, make_train_step

SHAPES = {"base": (4, 4.0), "small": (8, 4.0), "quickstart": (8, 4.0)}  # utterances, seconds


def make_config(shape: str, *, scan_layers: bool | None = None) -> ml_collections.ConfigDict:
    """Configuration of a shape: the paper's network, a small one, or that of the quick start.

    Args:
      shape: Key of `SHAPES`.
      scan_layers: In place of that of the configuration.

    Returns:
      Parsed configuration, in float32 on one device.
    """
    config = quickstart.get_config() if shape == "quickstart" else published_recipe()
    config.compute_dtype = "float32"
    config.mesh.data = 1
    if shape == "small":
        model = config.model
        model.conv_layers = tuple((128, kernel, stride) for _, kernel, stride in model.conv_layers)
        model.num_layers, model.num_heads = 6, 6
        model.width, model.ffn_dim = 192, 768
        model.num_codebooks, model.codebook_size = 4, 64
    if scan_layers is not None:
        config.model.scan_layers = scan_layers
    return parse(config)


def make_waveforms(config: Any, shape: str) -> np.ndarray:
    """Noise of variance 1, [B, S] float32."""
    size, seconds = SHAPES[shape]
    rng = np.random.default_rng(config.seed)
    return rng.standard_normal((size, int(seconds * 16_000)), np.float32)


def make_jax_step(config: Any, waveforms: np.ndarray) -> tuple[Callable[[], float], dict]:
    """The compiled update on one batch, as a function that returns the loss, and what it cost.

    Returns:
      The function, and compile time in seconds and temporary memory in GiB.
    """
    mesh, optimizer = sharding.make_mesh(config), make_optimizer(config)
    abstract, make = sharding.make_state(mesh, lambda: init_state(config, optimizer=optimizer))
    batch = sharding.shard_batch(mesh, waveforms)
    lowered = sharding.jit_train_step(mesh, make_train_step(config), abstract).lower(
        abstract, batch
    )
    start = time.perf_counter()
    compiled = lowered.compile()
    cost = {"compile_seconds": round(time.perf_counter() - start, 1)}
    cost["temporary_gib"] = round(compiled.memory_analysis().temp_size_in_bytes / 2**30, 2)
    state = make()

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        return float(metrics["loss"].mean())

    return step, cost


def make_peer(config: Any, waveforms: np.ndarray) -> Callable[[], float]:
    """The update in PyTorch, with the masks that JAX draws first."""
    try:
        from benchmarks.torch_peer import make_torch_step
    except ImportError as error:
        sys.exit(f"error: --torch needs {error.name}; pip install torch transformers")
    batch = sharding.shard_batch(sharding.make_mesh(config), waveforms)
    mask = draw_mask(config, batch, stream_key(config.seed, "mask"), span_mask)
    return make_torch_step(config, waveforms, np.asarray(mask))


def make_step(side: str, shape: str) -> tuple[Callable[[], float], dict]:
    """The update of a side: 'jax', 'jax_scanned', 'jax_unrolled' or 'torch'.

    Returns:
      Function that returns the loss, and what was measured while it was made.
    """
    scan_layers = {"jax_scanned": True, "jax_unrolled": False}.get(side)
    config = make_config(shape, scan_layers=scan_layers)
    waveforms = make_waveforms(config, shape)
    if side == "torch":
        return make_peer(config, waveforms), {}
    return make_jax_step(config, waveforms)


def serve(side: str, shape: str, pipe: Any) -> None:
    """Child process of a side: makes it, then does and times one update a message."""
    step, cost = make_step(side, shape)
    pipe.send(cost)
    while pipe.recv():
        start, start_cpu = time.perf_counter(), time.process_time()
        loss = step()
        pipe.send((time.perf_counter() - start, time.process_time() - start_cpu, loss))


def time_in_turn(sides: list[str], shape: str, steps: int) -> tuple[dict, dict]:
    """Wall-clock and CPU seconds of `steps` updates of every side, after two that do not count.

    CPU time is that of all threads: the steadier measure where other jobs run.

    Returns:
      Measured times and what was measured while a side was made, both by side.
    """
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    context, pipes, costs = multiprocessing.get_context("spawn"), {}, {}
    for name in sides:  # one after the other: compiling would disturb the next
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, shape, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            costs[name] = pipes[name].recv()
        except EOFError:
            sys.exit(f"error: {name} did not start; see above")
    for number in range(-2, steps):
        for name, pipe in pipes.items():
            pipe.send(True)
            elapsed, cpu, loss = pipe.recv()
            if not np.isfinite(loss):
                sys.exit(f"error: the loss of {name} is {loss}")
            if number >= 0:
                measured[name].append((elapsed, cpu))
    for pipe in pipes.values():
        pipe.send(False)
    return measured, costs


def main() -> None:
    """Compiles, times and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=7, help="timed updates (default 7)")
    parser.add_argument("--torch", action="store_true", help="time PyTorch too, in turn")
    parser.add_argument("--both", action="store_true", help="time scanned and unrolled layers")
    arguments = parser.parse_args()
    sides = ["jax_scanned", "jax_unrolled"] if arguments.both else ["jax"]
    sides += ["torch"] * arguments.torch
    measured, costs = time_in_turn(sides, arguments.shape, arguments.steps)
    utterances, seconds = SHAPES[arguments.shape]
    report(arguments.shape, utterances * seconds, measured, costs)


def report(shape: str, audio_seconds: float, measured: dict[str, list], costs: dict) -> None:
    """Prints a table, and the same as one line of JSON."""
    result: dict[str, Any] = {"shape": shape, "audio_seconds": audio_seconds}
    print(
        f"{'side':14}{'median s':>10}{'least s':>10}{'CPU s':>10}{'audio s/s':>11}{'compile s':>11}"
    )
    for name, times in measured.items():
        (median, cpu), (least, _) = np.median(times, axis=0), np.min(times, axis=0)
        compiled = costs.get(name, {}).get("compile_seconds", "")
        speed = audio_seconds / median
        print(f"{name:14}{median:10.3f}{least:10.3f}{cpu:10.3f}{speed:11.1f}{compiled:>11}")
        numbers = {"median": median, "least": least, "cpu": cpu, "audio_per_s": speed}
        result[name] = {key: round(float(value), 3) for key, value in numbers.items()}
        result[name] |= costs.get(name, {})
    for name in [side for side in costs if side != "torch" and "torch" in result]:
        median, least, cpu = (
            round(result["torch"][key] / result[name][key], 2) for key in ("median", "least", "cpu")
        )
        result[name] |= {"ratio": median, "ratio_least": least, "ratio_cpu": cpu}
        others = f"{least} by least times, {cpu} by CPU time"
        print(f"{name} is {median} times as fast as PyTorch ({others})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
