"""Loss and target perplexity of this project and of a PyTorch peer, update by update.

  python -m dinosr_jax prepare --source=data/embedded --data_dir=data/prepared/embedded
  python benchmarks/learning_curve.py --output=runs/learning_curve

Both sides start from the same parameters and see the same batches of real speech and the same
masks, for 300 updates of a small network in float32. The peer is the whole update in eager PyTorch,
on the encoder of `transformers` (pip install torch transformers): targets, codebooks and their
decay, the teacher's average, AdamW and the tri-stage rate.
- Without dropout, of both scopes of the teacher, from two seeds of the first parameters.
- With dropout and LayerDrop, of scope 'full', from one seed of the first parameters and three of
  what is dropped.
Every run is one JSON file in the output folder; those that are there are not computed again. The
comparison is printed; --figure draws it.

Shapes: B batch, S samples, T frames, D model, N codebooks, V codewords, M masked frames.
"""

import argparse
import copy
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import torch  # before tensorflow, which the data need: the other way round it may crash
from torch import nn
from transformers import Data2VecAudioModel

from benchmarks.torch_peer import model_config
from configs import waveform
from dinosr_jax import files
from dinosr_jax.config import parse
from dinosr_jax.interop import fairseq, naming
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import Batch, TrainState, init_state, stream_key
from dinosr_jax.training.step import draw_mask, make_train_step

UPDATES, EXACT = 300, 50  # in all; those in which rounding alone may tell the sides apart
SMOOTH = 20  # updates
Curve = dict[str, list[float]]  # loss and target_perplexity of every update
Side = Literal["jax", "torch"]


class Run(NamedTuple):
    """One line of the figure: a kind ('encoder', 'full' or 'dropout'), a side and a seed."""

    kind: str
    side: Side
    seed: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.kind}-{self.side}-{self.seed}.json"


RUNS = [
    *(
        Run(kind, side, seed)
        for kind in ("encoder", "full")
        for seed in (0, 1)
        for side in ("jax", "torch")
    ),
    *(Run("dropout", side, seed) for seed in (0, 1, 2) for side in ("jax", "torch")),
]


def make_config(kind: str) -> Any:
    """The network of configs/waveform.py, narrower, with all of its schedules in 300 updates.

    Args:
      kind: Of a run.

    Returns:
      Parsed configuration.
    """
    config = waveform.get_config()
    config.num_steps = UPDATES
    config.mesh.data = 1
    model = config.model
    model.conv_layers = tuple((24, kernel, stride) for _, kernel, stride in model.conv_layers)
    model.width, model.ffn_dim, model.codebook_size = 48, 192, 32
    config.teacher.scope = "encoder" if kind == "encoder" else "full"
    config.teacher.decay_steps = 200
    if kind == "dropout":
        model.dropout = model.attention_dropout = 0.1
        model.layerdrop = 0.05
    optimizer = config.optimizer
    optimizer.warmup_steps, optimizer.hold_steps, optimizer.decay_steps = 50, 150, 100
    data = config.data
    data.max_seconds, data.max_batch_seconds, data.max_rungs = 1.0, 8.0, 1
    return parse(config)


def first_state(config: Any, *, seed: int) -> TrainState:
    """The state before the first update; its teacher is a copy of its student."""
    config = parse(config.to_dict() | {"seed": seed})
    return jax.jit(lambda: init_state(config, optimizer=make_optimizer(config)))()


@functools.cache
def _jitted(config: Any) -> Callable:
    """The update of a configuration with a mask that is given; compiled once."""

    def update(state, waveforms, mask):
        given = make_train_step(config, sample_mask=lambda *_, **__: mask)
        return given(state, Batch(waveforms))

    return jax.jit(update)


def make_jax(config: Any, state: TrainState, *, seed: int) -> Callable[..., dict[str, float]]:
    """This project's side.

    Args:
      config: Parsed configuration.
      state: To start from.
      seed: Of dropout.

    Returns:
      Function (waveforms [B, S], mask [B, T]) -> metrics, one update each time it is called.
    """
    update = _jitted(parse(config.to_dict() | {"seed": seed}))

    def step(waveforms: np.ndarray, mask: np.ndarray) -> dict[str, float]:
        nonlocal state
        state, metrics = update(state, waveforms, mask)
        return {name: float(np.mean(metrics[name])) for name in ("loss", "target_perplexity")}

    return step


class Peer:
    """The same update in PyTorch, written from the paper and the official code's rules."""

    def __init__(
        self, config: Any, tensors: Mapping[str, np.ndarray], *, seed: int, dtype: torch.dtype
    ):
        """Takes parameters by fairseq's names (`fairseq.from_state`); `seed` is that of dropout."""
        torch.manual_seed(seed)
        self.config, self.finished, n = config, 0, config.model.num_codebooks
        read = lambda name: torch.tensor(np.asarray(tensors[name])).to(dtype)
        self.student = Data2VecAudioModel(model_config(config.model)).to(dtype).train()
        self.student.feature_extractor._requires_grad = False  # no gradient of the audio itself
        theirs = {
            naming.huggingface(name): read(name)
            for name in tensors
            if not name.startswith(("heads.", "_"))
        }
        self.student.load_state_dict(theirs)
        self.heads = nn.ModuleList(
            nn.Linear(config.model.width, config.model.codebook_size, dtype=dtype) for _ in range(n)
        )
        self.heads.load_state_dict(
            {f"{k}.{leaf}": read(f"heads.{k}.{leaf}") for k in range(n)
             for leaf in ("weight", "bias")}
        )  # fmt: skip
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.sums = torch.stack([read(f"_codebook{k}") for k in range(n)])  # [N, V, D]
        self.counts = torch.stack([read(f"_codebook_cnts{k}") for k in range(n)])  # [N, V]
        self.ffn: list[torch.Tensor] = []  # [B, T, D] of each layer of the teacher
        for layer in self.teacher.encoder.layers:
            layer.feed_forward.register_forward_hook(lambda *found: self.ffn.append(found[2]))
        c = config.optimizer
        self.optimizer = torch.optim.AdamW(
            [*self.student.parameters(), *self.heads.parameters()],
            betas=(c.b1, c.b2),
            eps=c.eps,
            weight_decay=c.weight_decay,
        )

    def targets(self, audio: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
        """The teacher's top layers [N, B, T, D], each channel normalised over time."""
        self.ffn.clear()
        if self.config.teacher.scope == "full":
            projected = project(self.teacher, audio)
        self.teacher.encoder(projected)
        found = []
        for of_layer in self.ffn[-self.config.model.num_codebooks :]:
            channels = of_layer.transpose(1, 2)  # [B, D, T]
            found.append(nn.functional.instance_norm(channels, eps=1e-5).transpose(1, 2))
        return torch.stack(found)

    def step(self, waveforms: np.ndarray, mask: np.ndarray) -> dict[str, float]:
        """One update on waveforms [B, S] and mask [B, T]."""
        audio, masked = torch.tensor(waveforms).to(self.sums.dtype), torch.tensor(mask)
        projected = project(self.student, audio)
        with torch.no_grad():
            targets = self.targets(audio, projected.detach())[:, masked]  # [N, M, D]
            words = self.sums / self.counts[..., None]
            codes = torch.argmin(torch.cdist(targets, words), dim=-1)  # [N, M]
        inputs = torch.where(masked[..., None], self.student.masked_spec_embed, projected)
        hidden = self.student.encoder(inputs).last_hidden_state[masked]  # [M, D]
        losses = [
            nn.functional.cross_entropy(head(hidden), of_head)
            for head, of_head in zip(self.heads, codes, strict=True)
        ]
        loss = torch.stack(losses).mean()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.finished)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self._average(ema_decay(self.config, self.finished + 1))
            chosen = nn.functional.one_hot(codes, words.shape[1]).to(targets.dtype)  # [N, M, V]
            self._move_codebooks(targets, chosen, codebook_decay(self.config, self.finished))
            share = chosen.mean(1)
            entropy = -torch.sum(torch.where(share > 0, share * torch.log2(share), 0.0), dim=-1)
        self.finished += 1
        return {"loss": loss.item(), "target_perplexity": torch.mean(2**entropy).item()}

    def _average(self, decay: float) -> None:
        """Moves the teacher; a teacher without a feature encoder copies positional convolutions."""
        shared = self.config.teacher.scope == "encoder"
        new = dict(self.student.named_parameters())
        for name, old in self.teacher.named_parameters():
            if name == "masked_spec_embed" or (shared and not name.startswith("encoder.")):
                continue
            copied = shared and "pos_conv_embed" in name
            old.copy_(new[name] if copied else decay * old + (1 - decay) * new[name])

    def _move_codebooks(self, targets: torch.Tensor, chosen: torch.Tensor, decay: float) -> None:
        number, total = chosen.sum(1), chosen.transpose(1, 2) @ targets  # [N, V], [N, V, D]
        keep = torch.where(number > 0, decay, 1.0).to(targets.dtype)
        self.counts = keep * self.counts + (1 - keep) * number
        self.sums = keep[..., None] * self.sums + (1 - keep[..., None]) * total


def project(model: Data2VecAudioModel, audio: torch.Tensor) -> torch.Tensor:
    """Waveforms [B, S] to projected features [B, T, D]."""
    return model.feature_projection(model.feature_extractor(audio).transpose(1, 2))[0]


def learning_rate(config: Any, finished: int) -> float:
    """The tri-stage rate of the next update."""
    c, after = config.optimizer, finished - config.optimizer.warmup_steps
    if after < 0:
        low = c.init_scale * c.learning_rate
        return low + (c.learning_rate - low) * finished / c.warmup_steps
    share = min(max(after - c.hold_steps, 0) / c.decay_steps, 1.0)
    return c.learning_rate * math.exp(share * math.log(c.final_scale))


def ema_decay(config: Any, update: int) -> float:
    """The teacher's decay after an update, counted from 1."""
    c = config.teacher
    return c.decay + (c.end_decay - c.decay) * min(update / c.decay_steps, 1.0)


def codebook_decay(config: Any, finished: int) -> float:
    """The codebooks' decay after so many updates."""
    c = config.codebook
    return c.decay + (c.end_decay - c.decay) * min(finished / c.decay_steps, 1.0)


def make_peer(
    config: Any, state: TrainState, *, seed: int, dtype: torch.dtype = torch.float32
) -> Callable[..., dict[str, float]]:
    """The peer's side, as `make_jax`."""
    return Peer(config, fairseq.from_state(state, config=config), seed=seed, dtype=dtype).step


def make_batches(config: Any, updates: int) -> dict[str, np.ndarray]:
    """What both sides see: waveforms [U, B, S] in float16, and masks [U, B, T]."""
    from dinosr_jax.data.batches.pipeline import open_split

    data = open_split(config.data, split=config.data.train_split, seed=config.seed)
    draw = jax.jit(
        lambda waveforms, step: draw_mask(
            config, Batch(waveforms), stream_key(config.seed, "mask", step), span_mask
        )
    )
    waveforms, masks = [], []
    for step, read in enumerate(data.batches(0, updates, share=(0, 1, 1))):
        waveforms.append(read.waveforms.astype(np.float16))
        masks.append(np.asarray(draw(read.waveforms, step)))
    return {"waveforms": np.stack(waveforms), "masks": np.stack(masks)}


def compute(run: Run, batches: Mapping[str, np.ndarray]) -> Curve:
    """The curve of a run."""
    config, dropout = make_config(run.kind), run.kind == "dropout"
    state = first_state(config, seed=0 if dropout else run.seed)
    if run.side == "jax":
        step = make_jax(config, state, seed=run.seed if dropout else 0)
    else:
        step = make_peer(config, state, seed=run.seed)
    curve: Curve = {"loss": [], "target_perplexity": []}
    for waveforms, mask in zip(batches["waveforms"], batches["masks"], strict=True):
        for name, value in step(waveforms.astype(np.float32), mask).items():
            curve[name].append(value)
    return curve


def smooth(values: np.ndarray) -> np.ndarray:
    """Means over `SMOOTH` updates."""
    return np.convolve(values, np.full(SMOOTH, 1 / SMOOTH), mode="valid")


def compare(curves: Mapping[Run, Curve]) -> dict[str, dict[str, float]]:
    """How far the sides are apart, and how far seeds are.

    Args:
      curves: Of all runs.

    Returns:
      Of each kind: 'exact', the largest relative difference of the losses of the first updates (of
      both seeds). For loss and target_perplexity, of means over 20 updates: 'sides', how far the
      sides are apart where they are farthest for the distance of the seeds, and 'seeds', how far
      those are apart there ('dropout': the sides' means of three seeds, and the range of the seeds
      of a side); 'within', the share of the updates where the sides are as close as the seeds.
    """
    found: dict[str, dict[str, float]] = {}
    for kind in ("encoder", "full", "dropout"):
        of = lambda side, name, k=kind: np.array(
            [curves[run][name] for run in RUNS if run[:2] == (k, side)]
        )
        row = {}
        if kind != "dropout":
            jax_loss, peer_loss = of("jax", "loss"), of("torch", "loss")
            apart = np.abs(jax_loss - peer_loss) / peer_loss
            row["exact"] = float(apart[:, :EXACT].max())
        for name in ("loss", "target_perplexity"):
            ours, theirs = of("jax", name), of("torch", name)
            if kind == "dropout":
                sides = np.abs(smooth(ours.mean(0)) - smooth(theirs.mean(0)))
                each = np.array([[smooth(line) for line in side] for side in (ours, theirs)])
                seeds = np.max(each.max(1) - each.min(1), axis=0)
            else:
                sides = np.max([smooth(line) for line in np.abs(ours - theirs)], axis=0)
                seeds = np.max([smooth(np.abs(x[0] - x[1])) for x in (ours, theirs)], axis=0)
            worst = int(np.argmax(sides / seeds))
            row |= {f"{name}_sides": float(sides[worst]), f"{name}_seeds": float(seeds[worst])}
            row[f"{name}_within"] = float(np.mean(sides <= seeds))
        found[kind] = row
    return found


def draw(curves: Mapping[Run, Curve], path: Path) -> None:
    """Draws all runs into a PNG: a column a kind, loss above perplexity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = {
        "encoder": "teacher: encoder, no dropout",
        "full": "teacher: full, no dropout",
        "dropout": "teacher: full, dropout and LayerDrop",
    }
    styles = {"jax": ("C0", "-", "this project"), "torch": ("C1", "--", "PyTorch peer")}
    figure = Figure(figsize=(12, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    for column, (kind, title) in enumerate(titles.items()):
        axes[0, column].set_title(title, fontsize=10)
        axes[1, column].set_xlabel("update")
        for row, name in enumerate(("loss", "target_perplexity")):
            for run in [run for run in RUNS if run.kind == kind]:
                color, line, label = styles[run.side]
                label = f"{label}, {'dropout ' if kind == 'dropout' else ''}seed {run.seed}"
                values, light = curves[run][name], 1.0 - 0.3 * run.seed
                steps = range(1, len(values) + 1)
                axes[row, column].plot(
                    steps, values, line, color=color, alpha=light, label=label, linewidth=1
                )
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("target perplexity (of 32 codewords)")
    axes[1, 0].legend(fontsize=8)
    axes[1, 2].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Computes the runs that are not there yet, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/learning_curve"))
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    stored = args.output / "batches.npz"
    if not stored.exists():
        batches = make_batches(make_config("full"), UPDATES)
        with files.replacing(stored, sync=False) as file:
            np.savez(file, **batches)
    with np.load(stored) as file:
        batches = dict(file)
    curves: dict[Run, Curve] = {}
    for run in RUNS:
        path = args.output / run.file
        if not path.exists():
            start = time.monotonic()
            files.replace_text(path, json.dumps(compute(run, batches)) + "\n")
            print(f"{path}: {time.monotonic() - start:.0f} s", flush=True)
        curves[run] = json.loads(path.read_text())
    print(json.dumps(compare(curves), indent=2))
    if args.figure:
        draw(curves, args.figure)


if __name__ == "__main__":
    main()
