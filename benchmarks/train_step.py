"""Time, FLOP/s and memory of one update: python benchmarks/train_step.py [--against=torch].

Runs on what jax finds, GPU or CPU; needs neither tensorflow nor ml_collections. With
--against=torch the same update in eager PyTorch, on the encoder of `transformers`, is timed in turn
(JAX, PyTorch, JAX, ...) on the CPU, so that both see the same machine; the ratio is that of the
medians. Each side has a process of its own, with its own defaults, and sleeps in the other's turns:
in one process each takes threads, allocator and caches from the other. It needs
`pip install torch transformers`. Both sides compute in float32.
--compare=layers times the layers scanned and unrolled (config.model.scan_layers), --compare=remat
the three ways of rematerialisation (config.model.remat).

FLOPs are those of products and convolutions as the update is written, without what the backward
pass computes anew. The peak that they are a share of is published for some GPUs; elsewhere it is
what one large product of matrices reaches in the same process.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import stand_in

stand_in.install()
from configs import quickstart
from dinosr_jax.config import parse, published_recipe
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.training import costs, sharding
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state, stream_key
from dinosr_jax.training.step import draw_mask, make_train_step

# utterances, seconds; 'device' is base with what one of 16 devices gets of the published batch
SHAPES = {"base": (4, 4.0), "small": (8, 4.0), "quickstart": (8, 4.0), "device": (12, 19.75)}
# fields of config.model that a side changes
SIDES: dict[str, dict[str, Any]] = {
    "jax": {},
    "scanned": {"scan_layers": True},
    "unrolled": {"scan_layers": False},
    "none": {"remat": "none"},
    "dots": {"remat": "dots"},
    "full": {"remat": "full"},
    "torch": {},
}
COMPARE = {"layers": ["scanned", "unrolled"], "remat": ["none", "dots", "full"]}
# dense bfloat16 TFLOP/s of NVIDIA's data sheets
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}


def make_config(shape: str, *, dtype: str = "float32", side: str = "jax") -> Any:
    """Configuration of a shape: the paper's network, a small one, or that of the quick start.

    Args:
      shape: Key of `SHAPES`.
      dtype: To compute in.
      side: Key of `SIDES`.

    Returns:
      Parsed configuration, on one device.
    """
    config = quickstart.get_config() if shape == "quickstart" else published_recipe()
    config.compute_dtype = dtype
    config.mesh.data = 1
    if shape == "small":
        model = config.model
        model.conv_layers = tuple((128, kernel, stride) for _, kernel, stride in model.conv_layers)
        model.num_layers, model.num_heads = 6, 6
        model.width, model.ffn_dim = 192, 768
        model.num_codebooks, model.codebook_size = 4, 64
    for field, value in SIDES[side].items():
        config.model[field] = value
    return parse(config)


def make_waveforms(config: Any, shape: str) -> np.ndarray:
    """Noise of variance 1, [B, S] float32."""
    size, seconds = SHAPES[shape]
    rng = np.random.default_rng(config.seed)
    return rng.standard_normal((size, int(seconds * 16_000)), np.float32)


def make_jax_step(config: Any, waveforms: np.ndarray) -> tuple[Callable[[], float], dict]:
    """The compiled update on one batch, as a function that returns the loss, and what it cost.

    Returns:
      The function, and compile time in seconds, temporary memory in GiB, TFLOP of the update and
      the peak in TFLOP/s.
    """
    mesh, optimizer = sharding.make_mesh(config), make_optimizer(config)
    abstract, make = sharding.make_state(mesh, lambda: init_state(config, optimizer=optimizer))
    batch = sharding.shard_batch(mesh, waveforms)
    traced = sharding.jit_train_step(mesh, make_train_step(config), abstract).trace(abstract, batch)
    start = time.perf_counter()
    compiled = traced.lower().compile()
    cost = {"compile_seconds": round(time.perf_counter() - start, 1)}
    cost["temporary_gib"] = round(compiled.memory_analysis().temp_size_in_bytes / 2**30, 2)
    written = parse(config.to_dict() | {"model": config.model.to_dict() | {"remat": "none"}})
    plain = sharding.jit_train_step(mesh, make_train_step(written), abstract)
    cost["tflop"] = round(costs.flops(plain.trace(abstract, batch).jaxpr) / 1e12, 3)
    cost["peak_tflops"] = find_peak(config.compute_dtype)
    state = make()

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        return float(metrics["loss"].mean())

    return step, cost


def find_peak(dtype: str) -> float:
    """TFLOP/s of the first device: published, or what a product of 4,096 x 4,096 reaches."""
    kind = jax.devices()[0].device_kind
    published = [peak for name, peak in PEAK_TFLOPS.items() if name in kind]
    if published and dtype == "bfloat16":
        return published[0]
    matrix = jnp.ones((4096, 4096), dtype)
    multiply = jax.jit(lambda a: a @ a)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(multiply(matrix))
        times.append(time.perf_counter() - start)
    return round(2 * 4096**3 / min(times[1:]) / 1e12, 3)


def peak_memory() -> float:
    """GiB: of the first device, or of this process where that is the CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats.get("peak_bytes_in_use", kib * 1024) / 2**30


def make_peer(config: Any, waveforms: np.ndarray) -> Callable[[], float]:
    """The update in PyTorch, with the masks that JAX draws first."""
    try:
        from benchmarks.torch_peer import make_torch_step
    except ImportError as error:
        sys.exit(f"error: --against=torch needs {error.name}; pip install torch transformers")
    batch = sharding.shard_batch(sharding.make_mesh(config), waveforms)
    mask = draw_mask(config, batch, stream_key(config.seed, "mask"), span_mask)
    return make_torch_step(config, waveforms, np.asarray(mask))


def make_step(side: str, shape: str, dtype: str) -> tuple[Callable[[], float], dict]:
    """The update of a side, a key of `SIDES`.

    Returns:
      Function that returns the loss, and what was measured while it was made.
    """
    config = make_config(shape, dtype=dtype, side=side)
    waveforms = make_waveforms(config, shape)
    if side == "torch":
        return make_peer(config, waveforms), {}
    return make_jax_step(config, waveforms)


def serve(side: str, shape: str, dtype: str, pipe: Any) -> None:
    """Child process of a side: makes it, then does and times one update a message."""
    if side == "torch":
        jax.config.update("jax_platforms", "cpu")
    step, cost = make_step(side, shape, dtype)
    pipe.send(cost)
    with contextlib.suppress(EOFError):  # the parent has given up
        while pipe.recv():
            start, start_cpu = time.perf_counter(), time.process_time()
            loss = step()
            pipe.send((time.perf_counter() - start, time.process_time() - start_cpu, loss))
        pipe.send(peak_memory())


def time_in_turn(sides: list[str], shape: str, dtype: str, steps: int) -> tuple[dict, dict]:
    """Wall-clock and CPU seconds of `steps` updates of every side, after two that do not count.

    CPU time is that of all threads: the steadier measure where other jobs run.

    Returns:
      Measured times and what was measured while a side was made, both by side.
    """
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    context, pipes, costs = multiprocessing.get_context("spawn"), {}, {}
    with contextlib.ExitStack() as ended:  # in order: killed at exit, they would dump their stacks
        for name in sides:  # one after the other: compiling would disturb the next
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=serve, args=(name, shape, dtype, theirs), daemon=True)
            process.start()
            ended.callback(process.join)
            ended.callback(pipes[name].close)
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
        for name, pipe in pipes.items():
            pipe.send(False)
            costs[name]["peak_gib"] = round(pipe.recv(), 2)
    return measured, costs


def main() -> None:
    """Compiles, times and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="(default: base or device, quickstart)")
    parser.add_argument("--steps", type=int, default=5, help="timed updates (default 5)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="(default: bfloat16 on GPU)"
    )
    parser.add_argument("--against", choices=["torch"], help="time PyTorch too, in turn")
    parser.add_argument("--compare", choices=COMPARE, help="time options in turn")
    arguments = parser.parse_args()
    pool = multiprocessing.get_context("spawn").Pool(1)
    on_cpu = pool.apply(jax.default_backend) == "cpu"
    pool.close()
    pool.join()
    if arguments.against and not on_cpu:
        sys.exit("error: --against=torch compares on the CPU; set JAX_PLATFORMS=cpu")
    dtype = arguments.dtype or ("float32" if on_cpu or arguments.against else "bfloat16")
    if arguments.against and dtype != "float32":
        sys.exit("error: --against=torch compares in float32")
    sides = [*COMPARE.get(arguments.compare, ["jax"])]
    sides += [arguments.against] * bool(arguments.against)
    shapes = [arguments.shape or ("base" if on_cpu else "device")]
    shapes += [] if arguments.shape else ["quickstart"]
    for shape in shapes:
        measured, found = time_in_turn(sides, shape, dtype, arguments.steps)
        utterances, seconds = SHAPES[shape]
        print(f"{shape}: {utterances} x {seconds:g} s of audio, {dtype}")
        report(shape, utterances * seconds, measured, found)


def report(shape: str, audio_seconds: float, measured: dict[str, list], costs: dict) -> None:
    """Prints a table, and the same as one line of JSON."""
    result: dict[str, Any] = {"shape": shape, "audio_seconds": audio_seconds}
    titles = ["median s", "least s", "CPU s", "audio s/s", "TFLOP/s", "of peak", "GiB", "compile s"]
    print(f"{'side':14}" + "".join(f"{title:>11}" for title in titles))
    for name, times in measured.items():
        (median, cpu), (least, _) = np.median(times, axis=0), np.min(times, axis=0)
        cost = costs[name]
        row = [f"{median:.3f}", f"{least:.3f}", f"{cpu:.3f}", f"{audio_seconds / median:.1f}"]
        numbers = {"median": median, "least": least, "cpu": cpu}
        numbers["audio_per_s"] = audio_seconds / median
        if "tflop" in cost:
            numbers["tflops"] = cost["tflop"] / median
            numbers["peak_share"] = numbers["tflops"] / cost["peak_tflops"]
            row += [f"{numbers['tflops']:.3f}", f"{numbers['peak_share']:.0%}"]
        else:
            row += ["", ""]
        row += [f"{cost['peak_gib']:.2f}", str(cost.get("compile_seconds", ""))]
        print(f"{name:14}" + "".join(f"{cell:>11}" for cell in row))
        result[name] = {key: round(float(value), 3) for key, value in numbers.items()} | cost
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
