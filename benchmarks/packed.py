"""Trains where there is no tensorflow, from speech that was decoded and packed elsewhere.

    python benchmarks/packed.py pack --config=configs/discover.py --output=speech.npz
    python benchmarks/packed.py train speech.npz --config=configs/discover.py --workdir=runs/here

`pack` reads the prepared dataset of a configuration, both splits, and writes one file of at most
--most_mb: 16 bits a sample where that fits, or else 8 (mu-law), or else it says how much there is.
`train` is main.py's run on that file: the same batches for the same seed and step, evaluations of
the held-out split (without unit quality: phones are not packed), checkpoints, and it goes on where
it stopped. It needs jax, flax, optax, orbax, ml_collections, tensorboardX and matplotlib; pure
Python wheels of those that are missing can be named in PYTHONPATH as they are.
"""

import argparse
import ast
import itertools
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from dinosr_jax.config import held_out, parse
from dinosr_jax.data import audio
from dinosr_jax.data.batches.crops import BatchPlan, plan_options
from dinosr_jax.data.batches.held_out import HeldOutPlan
from dinosr_jax.data.batches.pipeline import SpeechBatch, SpeechData
from dinosr_jax.data.manifest import Manifest
from dinosr_jax.data.threads import map_in_threads
from dinosr_jax.model.feature_encoder import receptive_field
from dinosr_jax.progress import log_to_terminal

_MU = 255.0


def to_mulaw(samples: np.ndarray) -> np.ndarray:
    """Samples int16 as 8 bits each, finer where they are small."""
    x = samples.astype(np.float32) / 32768
    found = np.sign(x) * np.log1p(_MU * np.abs(x)) / np.log1p(_MU)
    return (np.round(found * 127) + 128).astype(np.uint8)  # 128 is silence


def from_mulaw(codes: np.ndarray) -> np.ndarray:
    """The samples int16 that codes of `to_mulaw` stand for."""
    x = (codes.astype(np.float32) - 128) / 127
    found = np.sign(x) * np.expm1(np.abs(x) * np.log1p(_MU)) / _MU
    return np.clip(np.round(found * 32768), -32768, 32767).astype(np.int16)


class PackedRecords:
    """The audio of a packed split, as `Records` gives it."""

    def __init__(self, manifest: Manifest, samples: np.ndarray):
        self._ids, self._samples = manifest.ids, samples
        self._ends = np.cumsum(manifest.num_samples)
        self._starts = self._ends - manifest.num_samples

    def __getitem__(self, position: int) -> tuple[bytes, str]:
        """The bytes of a WAV file, and the id of the utterance."""
        found = self._samples[self._starts[position] : self._ends[position]]
        found = from_mulaw(found) if found.dtype == np.uint8 else found
        return audio.encode_pcm16(found), self._ids[position]


class PackedData(SpeechData):
    """A packed split; batches are made ahead in threads."""

    def batches(
        self,
        start_step: int = 0,
        num_steps: int | None = None,
        *,
        share: tuple[int, int, int] = (0, 1, 1),
    ) -> Iterator[SpeechBatch]:
        """As of `SpeechData`."""
        first, last, parts = share

        def make(step: int) -> SpeechBatch:
            size = len(self.plan.batch(step).indices)
            return self.make_batch(step, rows=slice(size * first // parts, size * last // parts))

        steps = itertools.count(start_step)
        steps = steps if num_steps is None else range(start_step, start_step + num_steps)
        return map_in_threads(make, steps, self._ahead["num_workers"])


def pack(config: Any, *, output: Path, most_mb: float) -> str:
    """Packs the training and the held-out split of a configuration.

    Args:
      config: Parsed configuration.
      output: File .npz.
      most_mb: Its size at most, in MB.

    Returns:
      What was packed, for a person.

    Raises:
      ValueError: There is more speech.
    """
    from dinosr_jax.data.manifest import Records, load_manifest

    splits = {"train": (config.data, config.data.train_split)}
    if config.data.eval_split:
        splits["eval"] = (held_out(config.data), config.data.eval_split)
    arrays: dict[str, np.ndarray] = {}
    manifests, records = {}, {}
    for use, (data, split) in splits.items():
        where = {"dataset": data.dataset, "split": split}
        manifests[use] = load_manifest(data.data_dir, **where).at_least(data.min_seconds)
        records[use] = Records(data.data_dir, **where)
        for name in ("ids", "num_samples", "speakers", "languages", "texts"):
            column = np.asarray(getattr(manifests[use], name))
            arrays[f"{use}_{name}"] = column if name == "num_samples" else column.astype(str)
    count = sum(int(manifest.num_samples.sum()) for manifest in manifests.values())
    columns = sum(array.nbytes for array in arrays.values())
    size = next((n for n in (2, 1) if n * count + columns <= most_mb * 1e6), None)
    if size is None:
        raise ValueError(
            f"found {count / 16_000 / 3600:.1f} hours, {(count + columns) / 1e6:.0f} MB with 8 "
            f"bits a sample, expected {most_mb:g} MB at most; take a part: "
            "--set data.train_split='train[:50%]'"
        )
    for use, manifest in manifests.items():
        samples = np.empty(int(manifest.num_samples.sum()), np.int16 if size == 2 else np.uint8)
        start = 0
        for position, length in zip(manifest.positions, manifest.num_samples, strict=True):
            content, name = records[use][position]
            waveform = audio.load(content, name=name)
            pcm = np.frombuffer(audio.encode_pcm16(waveform), "<i2", offset=44)
            samples[start : start + length] = pcm if size == 2 else to_mulaw(pcm)
            start += int(length)
        arrays[f"{use}_samples"] = samples
    np.savez(output, **arrays)
    about = f"{count / 16_000 / 3600:.2f} hours, {8 * size} bits a sample"
    return f"{output}: {about}, {(size * count + columns) / 1e6:.1f} MB"


def open_packed(path: Path, config: Any, *, use: str) -> PackedData:
    """A packed split with the batches of `open_split`; `use` is 'train' or 'eval'."""
    with np.load(path) as found:
        part = {name.removeprefix(f"{use}_"): found[name] for name in found if name.startswith(use)}
    samples = part.pop("samples")
    manifest = Manifest(**part, positions=np.arange(len(part["ids"])))
    field, hop = receptive_field(config.model.conv_layers)
    plan = (BatchPlan if use == "train" else HeldOutPlan)(
        manifest.num_samples,
        seed=config.seed if use == "train" else 0,
        field=field,
        hop=hop,
        **plan_options(config.data),
    )
    records = PackedRecords(manifest, samples)
    return PackedData(manifest, records=records, plan=plan, data_config=config.data)


def train(path: Path, config: Any, *, workdir: Path) -> int:
    """Trains on a packed file; returns the number of finished updates."""
    from dinosr_jax.training import loop
    from dinosr_jax.training.processes import keep_compiled

    keep_compiled(workdir / "compiled")
    train_data = open_packed(path, config, use="train")
    print(f"training data: {train_data.plan.summary()}", flush=True)
    eval_data = open_packed(path, config, use="eval") if config.data.eval_split else None
    return loop.train(config, workdir=workdir, train_data=train_data, eval_data=eval_data)


def main() -> None:
    """Packs or trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing, training = commands.add_parser("pack"), commands.add_parser("train")
    packing.add_argument("--output", type=Path, required=True)
    packing.add_argument("--most_mb", type=float, default=60.0)
    training.add_argument("path", type=Path)
    training.add_argument("--workdir", type=Path, required=True)
    for command in (packing, training):
        command.add_argument("--config", required=True, help="a .py file")
        command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    arguments = parser.parse_args()
    log_to_terminal()
    try:
        config = runpy.run_path(arguments.config)["get_config"]()
        for given in arguments.set:
            name, _, value = given.partition("=")
            *section, last = name.split(".")
            fields = config[section[0]] if section else config
            text = isinstance(fields.get(last), str)
            fields[last] = value.strip("'\"") if text else ast.literal_eval(value)
        config = parse(config)
        if arguments.command == "pack":
            print(pack(config, output=arguments.output, most_mb=arguments.most_mb))
        else:
            train(arguments.path, config, workdir=arguments.workdir)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
