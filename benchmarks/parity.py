"""This device's numbers: golden ones, bfloat16 beside float32: benchmarks/parity.py.

`golden` is what the tests compare on the CPU, to the same tolerances, in float32 with products of
the highest precision: features, codes, losses, gradients and three updates of the PyTorch peer.
`bfloat16` is some updates of a network in float32 and in bfloat16, from the same parameters on the
same coloured noise with the same masks and dropout. Every finding is one line of JSON; the exit
code is 1 where a tolerance was not kept.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import stand_in

stand_in.install()

import jax
import numpy as np

from benchmarks.train_step import SHAPES, make_config
from dinosr_jax.config import parse
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.training import sharding
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state, make_model
from dinosr_jax.training.step import apply, make_train_step, teacher_targets
from tests import golden_peer

GOLDEN = {
    "features": golden_peer.features,
    "features of padded utterances": lambda: golden_peer.features("tiny_padded"),
    "targets, codes, loss": golden_peer.targets_codes_and_loss,
    "gradients": golden_peer.gradients,
    "three updates": golden_peer.three_updates,
}
BATCHES = 5  # that the updates go through again and again


def compare(name: str, comparisons: Iterable[golden_peer.Comparison]) -> dict[str, Any]:
    """The largest difference of a group, and which of its arrays are further apart than allowed."""
    start, found, wrong = time.perf_counter(), [], []
    for comparison in comparisons:
        found.append(comparison)
        try:
            comparison.check()
        except AssertionError:
            wrong.append(f"{comparison.name}: {comparison.difference:.2g}")
    worst = max(found, key=lambda comparison: comparison.difference)
    row = {
        "compared": name,
        "arrays": len(found),
        "worst": worst.difference,
        "worst_of": worst.name,
    }
    return row | {"wrong": wrong, "seconds": round(time.perf_counter() - start, 1)}


def make_waveforms(number: int, size: int, seconds: float) -> np.ndarray:
    """[B, S] of noise whose spectrum differs from utterance to utterance."""
    rng = np.random.default_rng(number)
    noise = rng.normal(size=(size, int(seconds * 16_000)))
    for row, weight in zip(noise, rng.uniform(-0.95, 0.95, size), strict=True):
        row[1:] += weight * row[:-1]
    return (noise / noise.std(axis=1, keepdims=True)).astype(np.float32)


class Run:
    """Updates in one dtype."""

    def __init__(self, shape: str, dtype: str):
        fields = make_config(shape, dtype=dtype).to_dict()
        fields["optimizer"]["warmup_steps"] = 0  # so that something moves
        self.config, self.shape = parse(fields), shape
        mesh, optimizer = sharding.make_mesh(self.config), make_optimizer(self.config)
        init = lambda: init_state(self.config, optimizer=optimizer)
        abstract, make = sharding.make_state(mesh, init)
        self.step = sharding.jit_train_step(mesh, make_train_step(self.config), abstract)
        self.state, self.mesh, self.losses = make(), mesh, []
        self.codes = jax.jit(self._codes)

    def _codes(self, state: Any, batch: Any) -> jax.Array:
        model = make_model(self.config)
        projected = apply(model, state.params, batch.waveforms, method="project")
        targets = teacher_targets(self.config, model, state.teacher_params, projected, batch)
        return codebooks.assign(state.codebook, targets)

    def batch(self, number: int) -> Any:
        """A batch of the shape's size."""
        return sharding.shard_batch(self.mesh, make_waveforms(number, *SHAPES[self.shape]))

    def train(self, updates: int) -> None:
        """Does updates; the losses are kept."""
        for number in range(updates):
            self.state, metrics = self.step(self.state, self.batch(number % BATCHES))
            self.losses.append(float(metrics["loss"].mean()))


def compare_dtypes(shape: str, updates: int) -> Iterator[dict[str, Any]]:
    """Losses of both, and the share of codes that are equal, on a batch that is not learnt from."""
    exact = Run(shape, "float32")
    half = Run(shape, "bfloat16")
    same = lambda a, b: round(float(np.mean(np.asarray(a) == np.asarray(b))), 5)
    shares = {}
    with jax.default_matmul_precision("highest"):
        batch = exact.batch(99)
        before = exact.codes(exact.state, batch)
    shares["equal_codes_before"] = same(before, half.codes(exact.state, batch))
    with jax.default_matmul_precision("highest"):
        exact.train(updates)
        after = exact.codes(exact.state, batch)
    yield {"compared": f"{updates} updates in float32", "losses": exact.losses}
    half.train(updates)
    shares["equal_codes_after"] = same(after, half.codes(exact.state, batch))
    shares["equal_codes_of_own_states"] = same(after, half.codes(half.state, batch))
    apart = np.abs(np.divide(half.losses, exact.losses) - 1)
    row = {"compared": f"{updates} updates in bfloat16", "losses": half.losses}
    yield row | {"losses_apart": round(float(apart.max()), 5)} | shares


def main() -> None:
    """Prints the findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["golden", "bfloat16"])
    parser.add_argument("--shape", choices=SHAPES, default="base", help="of bfloat16 and float32")
    parser.add_argument("--updates", type=int, default=20)
    arguments = parser.parse_args()
    wrong: list[str] = []
    if arguments.what == "golden":
        for name, find in GOLDEN.items():
            with jax.default_matmul_precision("highest"):
                row = compare(name, find())
            print(json.dumps(row), flush=True)
            wrong += row["wrong"]
    else:
        for row in compare_dtypes(arguments.shape, arguments.updates):
            print(json.dumps(row), flush=True)
    if wrong:
        sys.exit("error: further from the golden numbers than allowed: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
