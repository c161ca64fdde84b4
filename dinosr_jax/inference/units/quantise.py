"""Discrete units: codes of the teacher's codebooks, of the student's heads, or of k-means.

Codes are computed on the devices, frame by frame. Codebooks cluster features that are normalised
over the utterance: what goes in one pass is normalised there; a recording in several chunks is gone
through twice, first for mean and variance.

Shapes: B batch, S samples, T frames, D model, L layers, N codebooks, V codewords.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.errors import UserError
from dinosr_jax.inference.forward import batched, long_audio
from dinosr_jax.inference.recordings import Bad, Recording, refuse
from dinosr_jax.inference.selection import Network, Selection, Tensor, parse_layers
from dinosr_jax.inference.units import kmeans
from dinosr_jax.model.dinosr import Heads
from dinosr_jax.model.transformer import Layers
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.objectives import OBJECTIVES
from dinosr_jax.objective.teacher import instance_normalise

Array = jax.Array
Source = Literal["codebook", "head", "kmeans"]
_EPSILON = 1e-5  # of instance_normalise


@dataclasses.dataclass(frozen=True)
class NearestCodes:
    """Nearest codeword to every frame of some layers; a function for `batched.Forward`.

    `normalisation` is 'utterance' (over the frames of this pass), 'given' (mean and factor are in
    the arrays) or 'none'.
    """

    layers: tuple[int, ...]
    tensor: Tensor
    normalisation: Literal["utterance", "given", "none"]

    def __call__(self, arrays: Any, layers: Layers, padded: Array) -> tuple[Array, ...]:
        """Codes [B, T] of each layer, whose arrays are a codebook [1, V, D] and moments [D]."""
        codes = []
        selected = Selection(self.layers, self.tensor)((), layers, padded)
        for z, (codebook, moments) in zip(selected, arrays, strict=True):
            if self.normalisation == "utterance":
                z = instance_normalise(z, padded)
            elif self.normalisation == "given":
                z = (z - moments[0][None, None]) * moments[1][None, None]
            codes.append(codebooks.assign(codebook, z.astype(jnp.float32)[None])[0])
        return tuple(codes)


@dataclasses.dataclass(frozen=True)
class HeadCodes:
    """Most probable code of some heads; a function for `batched.Forward`, which has all layers.

    They read the last layer's `block`, or each the `ffn` of its own of `layers`.
    """

    layers: tuple[int, ...]
    tensor: Tensor

    def __call__(self, arrays: Any, layers: Layers, padded: Array) -> tuple[Array, ...]:
        """Codes [B, T] of each head; their kernels [N, D, V] and biases [N, V] are the arrays."""
        del padded
        heads = Heads(*arrays["bias"].shape)
        read = layers.output
        if self.tensor == "ffn":
            read = jnp.stack([layers.ffn[number - 1] for number in self.layers])
        logits = heads.apply({"params": arrays}, read)
        return tuple(jnp.argmax(logits, axis=-1).astype(jnp.int32))


class Plan(NamedTuple):
    """What is read of a network, and what is made of it; `num_units` is V."""

    model: Any
    source: Source
    layers: tuple[int, ...]
    tensor: Tensor
    network: Network
    compute: NearestCodes | HeadCodes
    arrays: Any
    depth: int
    num_units: int


class UtteranceUnits(NamedTuple):
    """Units of a recording: [T] int32 of each layer; `num_samples` at 16 kHz."""

    recording: Recording
    codes: tuple[np.ndarray, ...]
    num_samples: int


def _codebook_of_layer(model: Any, layer: int) -> int:
    """Number of the codebook (from 0) that clusters a layer (from 1); UserError without one."""
    config = model.config.model
    if model.codebook is None and model.config.task != "ctc":
        raise UserError(
            f"{model.path}: config.objective is {model.config.objective!r}, which has no codebooks "
            "and codes; fit k-means on its features (--source=kmeans --fit)"
        )
    if model.codebook is None:
        raise UserError(
            f"{model.path}: a fine-tuned network has no codebooks and heads; take the units of the "
            "pre-trained one, or fit k-means (--source=kmeans --fit)"
        )
    if model.fresh:
        raise UserError(
            f"{model.path}: a student that came without heads and codebooks, which are random: its "
            "units mean nothing before it is trained on. Fit k-means: --source=kmeans --fit"
        )
    first = config.num_layers - config.num_codebooks + 1
    if not first <= layer <= config.num_layers:
        raise UserError(
            f"layer {layer} has no codebook; layers {first} to {config.num_layers} have one"
        )
    return layer - first


def plan(
    model: Any,
    *,
    layer: int | str | Sequence[int],
    source: Source = "codebook",
    kmeans_file: kmeans.KMeans | str | Path | None = None,
    tensor: Tensor | None = None,
    network: Network | None = None,
) -> Plan:
    """A plan of what to compute for units of some layers.

    `layer` 'all' is those with a codebook, or in the k-means file. The head of layer l predicts the
    codes of layer l, from the student's last layer (objective 'dinosr') or from its layer l
    ('spidr'). `tensor` and `network` are for k-means; None is what it was fitted on.

    Raises:
      UserError: No such source, layer or codebook; or k-means is of other features.
    """
    if source not in get_args(Source):
        raise UserError(f"source: found {source!r}, expected 'codebook', 'head' or 'kmeans'")
    if (source == "kmeans") != (kmeans_file is not None):
        raise UserError("source kmeans needs a k-means file, and only it takes one")
    if source == "kmeans":
        return _kmeans_plan(model, layer, kmeans_file, tensor, network)
    own_layer = source == "codebook" or OBJECTIVES[model.config.objective].reads == "ffn"
    read = ("ffn" if own_layer else "block", "teacher" if source == "codebook" else "student")
    for name, given, reads in zip(("tensor", "model"), (tensor, network), read, strict=True):
        if given not in (None, reads):
            raise UserError(f"{name}: found {given!r}; source {source} reads {reads!r}")
    config = model.config.model
    top = range(config.num_layers - config.num_codebooks + 1, config.num_layers + 1)
    which = list(top) if layer == "all" else layer
    layers = parse_layers(which, num_layers=config.num_layers)
    books = np.asarray([_codebook_of_layer(model, number) for number in layers])
    what, depth = (model, source, layers, *read), max(layers) if own_layer else config.num_layers
    if source == "head":
        heads = {name: leaf[books] for name, leaf in model.params["heads"].items()}
        return Plan(*what, HeadCodes(layers, read[0]), heads, depth, config.codebook_size)
    some = jax.tree.map(lambda x: jnp.asarray(x)[books], model.codebook)
    words = np.asarray(codebooks.codewords(some))
    for number, array in zip(layers, words, strict=True):
        if not np.isfinite(array).all():
            raise UserError(f"layer {number}: its codebook has codewords that are not finite")
    compute = NearestCodes(layers, "ffn", "utterance")
    return Plan(*what, compute, _as_codebooks(words), depth, config.codebook_size)


def _kmeans_plan(
    model: Any, layer: Any, file: Any, tensor: Tensor | None, network: Network | None
) -> Plan:
    fitted = file if isinstance(file, kmeans.KMeans) else kmeans.load(file)
    tensor = tensor or fitted.convention["tensor"]
    network = network or fitted.convention["model"]
    which = list(fitted.centroids) if layer == "all" else layer
    fitted.check(model, layers=(), tensor=tensor, network=network)
    layers = parse_layers(which, num_layers=model.config.model.num_layers, tensor=tensor)
    fitted.check(model, layers=layers, tensor=tensor, network=network)
    centroids = [fitted.centroids[number] for number in layers]
    compute = NearestCodes(layers, tensor, "none")
    arrays, size = _as_codebooks(centroids), len(centroids[0])
    return Plan(model, "kmeans", layers, tensor, network, compute, arrays, max(layers), size)


def _as_codebooks(words: Sequence[np.ndarray], moments: Sequence[Any] | None = None) -> list:
    """Codewords [V, D] of each layer as `NearestCodes` takes them."""
    moments = moments or [None] * len(words)
    ones = np.ones((1, len(words[0])), np.float32)
    return [
        (codebooks.Codebook(np.asarray(array, np.float32)[None], ones), moment)
        for array, moment in zip(words, moments, strict=True)
    ]


def compute(
    plan: Plan,
    recordings: Sequence[Recording],
    *,
    options: batched.Options | None = None,
    on_bad: Bad = refuse,
    lengths: batched.Lengths = "fixed",
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Iterator[UtteranceUnits]:
    """Computes units of recordings, the longest first; arguments as of `batched.run`."""
    options = options or batched.Options()
    where = {"depth": plan.depth, "network": plan.network, "options": options}
    forward = batched.Forward(plan.model, plan.compute, arrays=plan.arrays, **where)
    how = {"on_bad": on_bad, "say": say, "lengths": lengths}
    if plan.source != "codebook":
        for part in batched.whole(batched.run(forward, recordings, progress=progress, **how)):
            yield UtteranceUnits(part.recording, part.arrays, part.num_samples)
        return
    ordered = long_audio.by_length(recordings, on_bad=on_bad, num_workers=options.num_workers)
    longest = int(options.chunk_seconds * audio.SAMPLE_RATE)
    is_long = lambda header: header.num_samples > longest
    # by id: the header of a recording may be wrong
    long = {recording.id: recording for recording, header in ordered if is_long(header)}
    short = [recording for recording, header in ordered if not is_long(header)]
    seconds = sum(h.num_samples for _, h in ordered) / audio.SAMPLE_RATE
    missing: dict[str, float] = {}
    share = lambda part: lambda done, _: progress(done * part, seconds)
    for note in long_audio.notes([h for _, h in ordered if is_long(h)]):
        say(note)
    for part in batched.run(forward, short, progress=share(1.0), missing=missing, **how):
        if len(part.arrays[0]) == part.num_frames:
            yield UtteranceUnits(part.recording, part.arrays, part.num_samples)
        else:
            long[part.recording.id] = part.recording
    for recording in long.values():
        run = {"on_bad": on_bad, "progress": share(0.5), "missing": missing}
        yield from _in_two_passes(plan, recording, options, run)
    if missing:
        say(long_audio.missing_note(missing))


def _in_two_passes(
    plan: Plan, recording: Recording, options: batched.Options, run: Mapping[str, Any]
) -> Iterator[UtteranceUnits]:
    """Codes of a recording in several chunks: moments of the whole first; none where it is bad."""
    where = {"depth": plan.depth, "network": plan.network, "options": options}
    forward = batched.Forward(plan.model, Selection(plan.layers, plan.tensor), **where)
    moments, seen = [_RunningMoments() for _ in plan.layers], (0, -1)
    for part in batched.run(forward, [recording], **run):
        for of_layer, array in zip(moments, part.arrays, strict=True):
            of_layer.add(array)
        seen = (part.first + len(part.arrays[0]), part.num_frames)
    if seen[0] != seen[1]:
        return
    words = [codebook.sums[0] for codebook, _ in plan.arrays]
    arrays = _as_codebooks(words, [of_layer.mean_and_factor() for of_layer in moments])
    given = dataclasses.replace(plan.compute, normalisation="given")
    forward = batched.Forward(plan.model, given, arrays=arrays, **where)
    for part in batched.whole(batched.run(forward, [recording], **run)):
        yield UtteranceUnits(part.recording, part.arrays, part.num_samples)


class _RunningMoments:
    """Mean and variance of every channel over arrays that come one after the other, in float64."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, array: np.ndarray) -> None:
        """Adds frames [T, D]."""
        wide = np.asarray(array, np.float64)
        mean, count = wide.mean(axis=0), self._count + len(wide)
        delta = mean - self._mean
        self._squares += np.square(wide - mean[None]).sum(axis=0)
        self._squares += np.square(delta) * (self._count * len(wide) / count)
        self._mean += delta * (len(wide) / count)
        self._count = count

    def mean_and_factor(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and the factor [D] that brings the variance to 1, float32."""
        factor = 1 / np.sqrt(self._squares / self._count + _EPSILON)
        return np.asarray(self._mean, np.float32), np.asarray(factor, np.float32)


def of_waveforms(
    plan: Plan, recordings: Sequence[Recording], *, options: batched.Options | None = None
) -> list[Mapping[int, np.ndarray]]:
    """Units of waveforms, in their order: {layer: [T] int32} of each."""
    codes = {
        utterance.recording.id: dict(zip(plan.layers, utterance.codes, strict=True))
        for utterance in compute(plan, recordings, options=options)
    }
    return [codes[recording.id] for recording in recordings]
