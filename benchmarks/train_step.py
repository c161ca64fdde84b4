"""Time, FLOP/s and memory of one update: python benchmarks/train_step.py [--against=torch].

Runs on what jax finds, GPU or CPU; needs neither tensorflow nor ml_collections. With
--against=torch the same update in PyTorch, on the encoder of `transformers`, is timed in turn (JAX,
PyTorch, JAX, ...) on the same device; the ratio is that of the medians. Each side has a process of
its own, with its own defaults, and sleeps in the other's turns: in one process each takes threads,
allocator and caches from the other. It needs `pip install torch transformers`. On a GPU PyTorch is
compiled (torch.compile) and a turn has several updates; on a CPU it is eager and a turn has one.
--compare=layers times the layers scanned and unrolled (config.model.scan_layers), --compare=remat
the three ways of rematerialisation (config.model.remat).

FLOPs are those of products and convolutions as the update is written, without what the backward
pass computes anew. The peak that they are a share of is published for some GPUs; elsewhere it is
what one large product of matrices reaches in the same process.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import stand_in

stand_in.install()
from benchmarks.turns import Side, Times, process_memory, time_in_turn
from configs import tiny, waveform
from dinosr_jax.config import parse, published_recipe
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.recipes import FIELDS
from dinosr_jax.training import sharding
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.planning import hlo
from dinosr_jax.training.state import init_state, stream_key
from dinosr_jax.training.step import draw_mask, make_train_step

# utterances, seconds; 'device' is base with what one of 16 devices gets of the published batch
SHAPES = {"base": (4, 4.0), "small": (8, 4.0), "waveform": (8, 4.0), "device": (12, 19.75)}
SHAPES["tiny"] = (2, 1.0)
# fields of config.model that are compared
COMPARE: dict[str, tuple[str, list[Any]]] = {
    "layers": ("scan_layers", [True, False]),
    "remat": ("remat", ["none", "dots", "full"]),
}
# dense bfloat16 TFLOP/s of NVIDIA's data sheets
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}


def choices(field: str) -> list[str]:
    """The values that a field of texts may have."""
    return FIELDS[field].check.expected.removeprefix("one of ").split(", ")


def make_config(shape: str, *, dtype: str = "float32", **fields: Any) -> Any:
    """Configuration of a shape: the paper's network, a small one, or that of the quick start.

    Args:
      shape: Key of `SHAPES`.
      dtype: To compute in.
      **fields: Of `config.model`.

    Returns:
      Parsed configuration, on one device.
    """
    own = {"waveform": waveform.get_config, "tiny": tiny.get_config}
    config = own.get(shape, published_recipe)()
    config.compute_dtype = dtype
    config.mesh.data = 1
    config.data.batch_multiple = 1
    if shape == "small":
        model = config.model
        model.conv_layers = tuple((128, kernel, stride) for _, kernel, stride in model.conv_layers)
        model.num_layers, model.num_heads = 6, 6
        model.width, model.ffn_dim = 192, 768
        model.num_codebooks, model.codebook_size = 4, 64
    for field, value in fields.items():
        config.model[field] = value
    return parse(config)


def make_waveforms(config: Any, size: int, seconds: float) -> np.ndarray:
    """Noise of variance 1, [B, S] float32."""
    rng = np.random.default_rng(config.seed)
    return rng.standard_normal((size, int(seconds * 16_000)), np.float32)


def compile_step(config: Any, waveforms: np.ndarray, *, most_gib: float | None = None):
    """The compiled update on one batch.

    Args:
      config: Parsed configuration.
      waveforms: [B, S] float32.
      most_gib: Memory of the device; None for what it says of itself.

    Returns:
      Function of no arguments that returns the loss; the compiled program; and what it cost:
      compile time in seconds, memory in GiB (of the state, of all that it needs, temporary and
      that of the device), TFLOP of the update and the peak in TFLOP/s.

    Raises:
      MemoryError: The program needs more memory than the device has.
    """
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    mesh, optimizer = sharding.make_mesh(config), make_optimizer(config)
    abstract, make = sharding.make_state(mesh, lambda: init_state(config, optimizer=optimizer))
    batch = sharding.shard_batch(mesh, waveforms)
    traced = sharding.jit_train_step(mesh, make_train_step(config), abstract).trace(abstract, batch)
    hits.clear()
    start = time.perf_counter()
    compiled = traced.lower().compile()
    cost: dict[str, Any] = {"compile_seconds": round(time.perf_counter() - start, 1)}
    cost["compiled_before"] = "/jax/compilation_cache/cache_hits" in hits
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    gib = lambda size: round(size / 2**30, 3)
    cost["temporary_gib"] = gib(memory.temp_size_in_bytes)
    cost["state_gib"] = gib(memory.argument_size_in_bytes - waveforms.nbytes)
    cost["needed_gib"] = gib(needed)
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    cost["device_gib"] = most_gib or (limit and gib(limit))
    if cost["device_gib"] and cost["needed_gib"] > cost["device_gib"]:
        raise MemoryError(
            f"the program needs {cost['needed_gib']:.3g} GiB of the {cost['device_gib']:.3g} that "
            "there are"
        )
    written = parse(config.to_dict() | {"model": config.model.to_dict() | {"remat": "none"}})
    plain = sharding.jit_train_step(mesh, make_train_step(written), abstract)
    cost["tflop"] = round(hlo.flops(plain.trace(abstract, batch).jaxpr) / 1e12, 6)
    cost["peak_tflops"] = find_peak(config.compute_dtype)
    state = make()

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        return float(metrics["loss"].mean())

    return step, compiled, cost


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
    return stats["peak_bytes_in_use"] / 2**30 if stats else process_memory()


def make_jax_side(config: Any, waveforms: np.ndarray, *, most_gib: float | None = None) -> Side:
    """Ours."""
    step, _, cost = compile_step(config, waveforms, most_gib=most_gib)
    return Side(step, cost, peak_memory)


def make_torch_side(config: Any, waveforms: np.ndarray, *, device: str, compiled: bool) -> Side:
    """The update in PyTorch, with the masks that JAX draws first."""
    jax.config.update("jax_platforms", "cpu")
    try:
        from benchmarks.torch_peer import make_torch_step, peak_memory, rest
    except ImportError as error:
        sys.exit(f"error: --against=torch needs {error.name}; pip install torch transformers")
    batch = sharding.shard_batch(sharding.make_mesh(config), waveforms)
    mask = np.asarray(draw_mask(config, batch, stream_key(config.seed, "mask"), span_mask))
    step = make_torch_step(config, waveforms, mask, device=device, compiled=compiled)
    start = time.perf_counter()
    step()
    about = {"first_step_seconds": round(time.perf_counter() - start, 1)}
    about["way"] = "compiled" if compiled else "eager"
    return Side(
        step, about, functools.partial(peak_memory, device), functools.partial(rest, device)
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="(default: base or device, waveform)")
    parser.add_argument("--utterances", type=int, help="(default: the shape's)")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns (default 5)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="(default: bfloat16 on GPU)"
    )
    for name in ("attention", "remat"):
        values = choices(f"model.{name}")
        parser.add_argument(f"--{name}", choices=values, help="config.model (default: the shape's)")
    parser.add_argument("--against", choices=["torch"], help="time PyTorch too, in turn")
    parser.add_argument("--torch", choices=["compiled", "eager"], help="(default: compiled on GPU)")
    parser.add_argument("--compare", choices=COMPARE, help="time options in turn")
    parser.add_argument("--most_gib", type=float, help="memory of the device (default: it says)")
    return parser.parse_args()


def make_sides(arguments: argparse.Namespace, shape: str, *, platform: str) -> dict[str, Any]:
    """What makes each side, by its name."""
    gpu = platform == "gpu"
    dtype = arguments.dtype or ("bfloat16" if gpu else "float32")
    fields = {"attention": arguments.attention, "remat": arguments.remat}
    fields = {name: value for name, value in fields.items() if value}
    config = make_config(shape, dtype=dtype, **fields)
    size, seconds = SHAPES[shape]
    waveforms = make_waveforms(config, arguments.utterances or size, seconds)
    make = functools.partial(make_jax_side, waveforms=waveforms, most_gib=arguments.most_gib)
    sides = {"jax": functools.partial(make, config)}
    if arguments.compare:
        field, values = COMPARE[arguments.compare]
        config_of = lambda value: make_config(shape, dtype=dtype, **fields | {field: value})
        sides = {f"{field}={value}": functools.partial(make, config_of(value)) for value in values}
    if arguments.against:
        how = {"device": "cuda" if gpu else "cpu"}
        how["compiled"] = (arguments.torch or ("compiled" if gpu else "eager")) == "compiled"
        sides["torch"] = functools.partial(make_torch_side, config, waveforms, **how)
    return sides


def main() -> None:
    """Compiles, times and reports; exits with 1 where memory does not suffice."""
    arguments = parse_arguments()
    if arguments.against or arguments.compare:  # several processes share the device
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # it holds the device not longer
            platform = pool.apply(jax.default_backend)
            pool.close()
            pool.join()
    else:
        platform = jax.default_backend()
    shapes = [arguments.shape or ("device" if platform == "gpu" else "base")]
    shapes += [] if arguments.shape else ["waveform"]
    turn = {"steps": 5, "settle": 1} if platform == "gpu" else {}
    for shape in shapes:
        try:
            sides = make_sides(arguments, shape, platform=platform)
            measured, found = time_in_turn(sides, rounds=arguments.rounds, **turn)
        except MemoryError as error:
            print(json.dumps({"out_of_memory": str(error)}))
            sys.exit(f"error: {error}")
        except ValueError as error:
            if "attention" not in str(error):
                raise
            print(json.dumps({"refused": str(error)}))
            sys.exit(f"error: {error}")
        size, seconds = arguments.utterances or SHAPES[shape][0], SHAPES[shape][1]
        dtype = arguments.dtype or ("bfloat16" if platform == "gpu" else "float32")
        print(f"{shape}: {size} x {seconds:g} s of audio, {dtype}")
        about = {"shape": shape, "utterances": size, "dtype": dtype}
        report(about | {"audio_seconds": size * seconds}, measured, found)


def report(about: dict, measured: dict[str, list[Times]], costs: dict[str, dict]) -> None:
    """Prints a table, and the same as one line of JSON."""
    result: dict[str, Any] = dict(about)
    titles = ["median s", "least s", "CPU s", "audio s/s", "TFLOP/s", "of peak", "GiB", "compile s"]
    print(f"{'side':18}" + "".join(f"{title:>11}" for title in titles))
    for name, times in measured.items():
        (median, cpu), (least, _) = np.median(times, axis=0), np.min(times, axis=0)
        cost, rate = costs[name], about["audio_seconds"] / median
        row = [f"{median:.3f}", f"{least:.3f}", f"{cpu:.3f}", f"{rate:.1f}"]
        numbers = {"median": median, "least": least, "cpu": cpu, "audio_per_s": rate}
        if "tflop" in cost:
            numbers["tflops"] = cost["tflop"] / median
            numbers["peak_share"] = numbers["tflops"] / cost["peak_tflops"]
            row += [f"{numbers['tflops']:.3f}", f"{numbers['peak_share']:.0%}"]
        else:
            row += ["", ""]
        row += [f"{cost['peak_gib']:.2f}", str(cost.get("compile_seconds", ""))]
        print(f"{name:18}" + "".join(f"{cell:>11}" for cell in row))
        result[name] = {key: round(float(value), 4) for key, value in numbers.items()} | cost
    for name in [side for side in costs if side != "torch" and "torch" in result]:
        median, least, cpu = (
            round(result["torch"][key] / result[name][key], 2) for key in ("median", "least", "cpu")
        )
        result[name] |= {"ratio": median, "ratio_least": least, "ratio_cpu": cpu}
        others = f"{least} by least times, {cpu} by CPU time"
        print(f"{name} is {median} times as fast as PyTorch ({others})")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
