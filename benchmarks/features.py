"""Features of given waveforms, against transformers on the same device: benchmarks/features.py.

The network of `extract` up to its last layer, with random weights of the published shape, and
transformers' `Data2VecAudioModel`, compiled, on the same noise in batches as `extract` makes them;
what is read and written is not timed (benchmarks/extract.py times files on a CPU). In turn, each
side in a process of its own. Ours computes in float32, as `extract` always does, and in bfloat16.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sides share the device
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import stand_in

stand_in.install()

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step import make_config, make_waveforms, peak_memory
from benchmarks.turns import Side, time_in_turn
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state, make_model
from dinosr_jax.training.step import apply


def last_layer(_arrays: Any, layers: Any, _padding: Any) -> jax.Array:
    """Of `Forward`: the output of the last layer."""
    return layers.output


def make_jax_side(shape: str, dtype: str, waveforms: np.ndarray) -> Side:
    """Ours: what `extract` runs, or the same network in bfloat16."""
    config = make_config(shape, dtype=dtype)
    state = init_state(config, optimizer=make_optimizer(config))
    if dtype == "float32":
        parts = {"params": state.params, "teacher_params": state.teacher_params}
        model = Pretrained(config, **parts, codebook=state.codebook)
        forward = batched.Forward(model, last_layer, depth=config.model.num_layers)
        run = lambda: forward.submit(list(waveforms))[0]
    else:
        model, on_device = make_model(config), jnp.asarray(waveforms)

        @jax.jit
        def compute(params: Any, waveforms: jax.Array) -> jax.Array:
            projected = apply(model, params, waveforms, method="project")
            return apply(model, params, projected, method="encode").output

        run = lambda: compute(state.params, on_device)
    start = time.perf_counter()
    jax.block_until_ready(run())
    about = {"first_step_seconds": round(time.perf_counter() - start, 1)}
    return Side(lambda: float(run()[0, 0, 0]), about, peak_memory)


def make_torch_side(
    shape: str, dtype: str, waveforms: np.ndarray, *, device: str, compiled: bool
) -> Side:
    """That of transformers."""
    import torch
    from transformers import Data2VecAudioModel

    from benchmarks import torch_peer

    torch.manual_seed(0)
    config = make_config(shape)
    model = Data2VecAudioModel(torch_peer.model_config(config.model)).eval().to(device)
    if compiled:
        torch_peer.compile_parts(model, device=device)
    audio = torch.tensor(waveforms, device=device)

    def run() -> float:
        with contextlib.ExitStack() as how:
            how.enter_context(torch.inference_mode())
            how.enter_context(torch.autocast(device, torch.bfloat16, dtype == "bfloat16"))
            return float(model(audio).last_hidden_state[0, 0, 0])

    start = time.perf_counter()
    run()
    about = {"first_step_seconds": round(time.perf_counter() - start, 1)}
    peak = functools.partial(torch_peer.peak_memory, device)
    return Side(run, about, peak, functools.partial(torch_peer.rest, device))


def main() -> None:
    """Times the sides in turn and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["base", "small", "waveform", "tiny"], default="base")
    parser.add_argument("--seconds", type=float, default=15.0, help="of an utterance")
    parser.add_argument("--batch_seconds", type=float, help="(default: as extract, 240 or 16)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", choices=["compiled", "eager"], default="compiled")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cpu")
    arguments = parser.parse_args()
    gpu = arguments.device == "cuda"
    budget = arguments.batch_seconds or (240.0 if gpu else 16.0)
    size = max(int(budget / arguments.seconds), 1)
    make = functools.partial(make_waveforms, make_config(arguments.shape), size, arguments.seconds)
    waveforms, shape = make(), arguments.shape
    how = {"device": arguments.device, "compiled": arguments.torch == "compiled"}
    sides: dict[str, Any] = {}
    for dtype in ("bfloat16", "float32"):
        sides[f"jax {dtype}"] = functools.partial(make_jax_side, shape, dtype, waveforms)
        given = (make_torch_side, shape, dtype, waveforms)
        sides[f"torch {dtype}"] = functools.partial(*given, **how)
    turn = {"steps": 10, "settle": 2} if gpu else {}
    measured, found = time_in_turn(sides, rounds=arguments.rounds, **turn)
    medians = {}
    for side, times in measured.items():
        median, least = np.median(times, axis=0)[0], np.min(times, axis=0)[0]
        medians[side] = median
        row = {"side": side, "way": arguments.torch if "torch" in side else "jit"}
        row |= {"utterances": size, "seconds": arguments.seconds} | found[side]
        row |= {"median": round(median, 5), "least": round(least, 5)}
        row["audio_per_s"] = round(size * arguments.seconds / median, 1)
        if side.startswith("torch"):
            ours = medians[side.replace("torch", "jax")]
            row["ratio"] = round(median / ours, 3)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
