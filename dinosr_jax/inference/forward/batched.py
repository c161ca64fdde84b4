"""Recordings in, arrays out: decoded in threads, batched by length, computed on all devices.

Attention is global, and so an utterance is computed in one pass, up to `chunk_seconds`, in memory
that grows with its length only. What is longer is cut into overlapping chunks of that length,
normalised by the mean and variance of the whole; a frame is taken from the chunk in whose middle
it is.

Shapes: B batch, S samples, T frames, D model.
"""

import bisect
import collections
import functools
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.batches.padding import padded_lengths
from dinosr_jax.data.threads import ahead
from dinosr_jax.errors import UserError
from dinosr_jax.inference.forward import long_audio
from dinosr_jax.inference.recordings import Bad, Recording
from dinosr_jax.model import layers
from dinosr_jax.model.dinosr import DinoSR, padding_mask
from dinosr_jax.model.feature_encoder import num_frames, receptive_field
from dinosr_jax.training import sharding
from dinosr_jax.training.step import apply

Array = jax.Array
Lengths = Literal["fixed", "fitted"]
# of the parameters: what is computed; MFCC has none
PARTS = ("feature_encoder", "feature_projection", "encoder")
# What the feature encoder computes at a time: of a long recording; of a batch, and of an utterance
# at least, on CPU. There 100 frames are 9 % faster than 665, 25 of each of 8 utterances 5 %.
_PIECE_FRAMES, _CACHED_FRAMES, _LEAST_FRAMES = 3000, 100, 25


class Options(NamedTuple):
    """How recordings are batched.

    `batch_seconds` is the audio of a batch on each device (None: 16 on CPU, 240 elsewhere);
    `chunk_seconds` the longest that goes in one pass; `overlap_seconds` what chunks share with
    the one before; `num_workers` threads that decode (None: one a core).
    """

    batch_seconds: float | None = None
    chunk_seconds: float = 600.0
    overlap_seconds: float = 60.0
    num_workers: int | None = None

    def check(self) -> None:
        """Raises UserError where chunks would not advance."""
        if not (self.chunk_seconds >= 1 and 0 <= self.overlap_seconds <= self.chunk_seconds / 2):
            raise UserError(
                f"chunk_seconds {self.chunk_seconds:g}, overlap_seconds {self.overlap_seconds:g}: "
                "expected chunks of at least 1 s that overlap by half at most"
            )


class Part(NamedTuple):
    """Frames `first` to `first + T` of the `num_frames` of a recording; arrays of [T, ...].

    `ends_batch`: no other part follows from its batch. The batches that follow are the same where
    they are computed without what came before.
    """

    recording: Recording
    arrays: Any
    first: int
    num_frames: int
    num_samples: int
    ends_batch: bool


class _Piece(NamedTuple):
    """Audio to compute in one pass, and the frames [start, stop) of it that are kept."""

    recording: Recording
    waveform: np.ndarray
    start: int
    stop: int
    first: int
    num_frames: int
    num_samples: int


_RATIO = 2**0.25  # of neighbouring lengths: at most 19 % of a batch is padding for it
_SHORTEST_SECONDS = 0.5
_LONGEST_FITTED_SECONDS = 60
_MOST_FITTED = 48
# Audio that is computed while one more length is compiled, about: base, on two cores or one GPU.
_PRICE_SECONDS = {"cpu": 60.0, "other": 20_000.0}


class Ladder:
    """Fixed lengths, each 2^(1/4) times the one before, or others that fit given recordings.

    `shortest`: samples that a pass needs at least; `longest_seconds`: of one pass; `exact`: nothing
    is padded.
    """

    def __init__(self, *, shortest: int, longest_seconds: float, exact: bool, platform: str):
        self._needed, self._exact = shortest, exact
        seconds = _PRICE_SECONDS.get(platform, _PRICE_SECONDS["other"])
        self._price = seconds * audio.SAMPLE_RATE
        self._shortest = max(int(_SHORTEST_SECONDS * audio.SAMPLE_RATE), shortest)
        self._longest = int(longest_seconds * audio.SAMPLE_RATE)
        self._fitted: tuple[int, ...] = ()

    def fit(self, lengths: Sequence[int]) -> None:
        """Chooses lengths for these utterances: each saves more padding than compiling it takes."""
        self._fitted = ()
        longest = min(_LONGEST_FITTED_SECONDS * audio.SAMPLE_RATE, self._longest)
        lengths = [n for n in lengths if self._needed <= n <= longest]
        if lengths and not self._exact:
            how = {"max_rungs": _MOST_FITTED, "price": self._price}
            self._fitted = padded_lengths(np.asarray(lengths), **how)

    def rung(self, samples: int) -> int:
        """The length that audio of S samples is padded to."""
        if self._exact or samples > self._longest:
            return samples
        if self._fitted and samples <= self._fitted[-1]:
            return self._fitted[bisect.bisect_left(self._fitted, samples)]
        length = float(self._shortest)
        while length < samples:
            length *= _RATIO
        return max(samples, min(int(length), self._longest))


class Forward:
    """The network up to one layer, and a function of its layers, on all local devices.

    Args:
      model: Of `load`.
      compute: Hashable function (arrays, Layers, padding_mask [B, T]) -> tree of [B, T, ...]; runs
        on the devices. `Layers` has the first `depth` layers; 0 is the encoder's input.
      network: Student or teacher.
      arrays: Tree that `compute` is given, whole on every device: codebooks, centroids, ...
      options: Of the batches.
    """

    def __init__(
        self,
        model: Any,
        compute: Callable[[Any, Any, Array], Any],
        *,
        depth: int,
        network: str = "student",
        arrays: Any = (),
        options: Options | None = None,
    ):
        if network not in ("student", "teacher"):
            raise UserError(f"model: found {network!r}, expected 'student' or 'teacher'")
        self.options = options or Options()
        self.options.check()
        self.width, self.conv_layers = model.config.model.width, model.config.model.conv_layers
        self.field, self.hop = receptive_field(self.conv_layers)
        self.exact = model.config.model.padding_mode != "zero"  # padding would leak into features
        self.mesh = sharding.local_mesh()
        platform = self.mesh.devices.flat[0].platform
        self.ladder = Ladder(
            shortest=self.field,
            longest_seconds=self.options.chunk_seconds,
            exact=self.exact,
            platform=platform,
        )
        seconds = self.options.batch_seconds or (16.0 if platform == "cpu" else 240.0)
        self.budget = int(seconds * audio.SAMPLE_RATE)
        self._filled: set[int] = set()  # lengths of which a full batch is compiled
        # parameters are kept with the model, for the next call
        kept = model.__dict__.setdefault("_placed", {})
        key = (depth, network)
        if kept.get("key") != key:
            kept.clear()
            kept.update(key=key, params=_place(model, max(depth, 1), network, self.mesh))
        self._program = _compile(model.config.model, max(depth, 1), compute, self.mesh)
        self._params = (kept["params"], jax.device_put(arrays, sharding.replicated(self.mesh)))

    def rows(self, rung: int) -> int:
        """How many utterances of a length make a full batch."""
        return max(1, self.budget // rung) * self.mesh.size

    def submit(self, waveforms: Sequence[np.ndarray]) -> Any:
        """Starts to compute a batch; returns arrays [rows, T, ...], and which frames are finite."""
        rung = self.ladder.rung(max(map(len, waveforms)))
        rows, full = self.mesh.size, self.rows(rung)
        while rows < len(waveforms):
            rows *= 2
        rows = full if rung in self._filled else max(len(waveforms), min(rows, full))
        if rows == full:
            self._filled.add(rung)
        batch = np.zeros((rows, rung), np.float32)
        lengths = np.full(rows, rung if self.exact else 0, np.int32)
        for row, waveform in enumerate(waveforms):
            batch[row, : len(waveform)] = waveform
            lengths[row] = len(waveform)
        where = sharding.batch_sharding(self.mesh)
        return self._program(
            self._params, (jax.device_put(batch, where), jax.device_put(lengths, where))
        )


def _place(model: Any, depth: int, network: str, mesh: Any) -> Any:
    """Parameters of what is computed, on every device."""
    params = model.full_params(network)
    parts = {name: params[name] for name in PARTS if name in params}
    stacked = jax.tree.map(lambda leaf: leaf[:depth], parts["encoder"]["layers"])
    parts["encoder"] = {**parts["encoder"], "layers": stacked}
    return jax.device_put(parts, sharding.replicated(mesh))


@functools.lru_cache(maxsize=8)
def _compile(config: Any, depth: int, compute: Callable, mesh: Any) -> Callable:
    """The program of networks of a `config.model`: trained or not, they share it."""
    changed = config.to_dict() | {"num_layers": depth, "attention": "xla"}
    model = DinoSR(type(config)(changed), jnp.float32)
    conv_layers = config.conv_layers

    def forward(params: Any, waveforms: Array, num_samples: Array) -> Any:
        params, arrays = params
        padded = padding_mask(num_samples, samples=waveforms.shape[1], conv_layers=conv_layers)
        with jax.default_matmul_precision("highest"):
            x = _project(model, params, waveforms, padded)
            encoded = apply(model, params, x, padding_mask=padded, all_layers=True, method="encode")
            # what is not finite in one layer is not finite in those above
            finite = jnp.isfinite(encoded.output).all(axis=-1) | padded
            return compute(arrays, encoded, padded), finite

    return sharding.jit_inference(mesh, forward)


def _project(model: DinoSR, params: Any, waveforms: Array, padded: Array) -> Array:
    """Projected features [B, T, D]; of long waveforms, unless they are MFCC, piece by piece.

    A frame sees its receptive field only: pieces that share it give exactly what one pass gives.
    They bound the memory, and on CPU they keep the first layers' arrays in its cache. MFCC are
    normalised over the utterance, and small.
    """
    conv_layers = model.config.conv_layers
    field, hop = receptive_field(conv_layers)
    frames = num_frames(waveforms.shape[1], conv_layers)
    most = _PIECE_FRAMES
    if layers.platform() == "cpu":
        most = max(_CACHED_FRAMES // len(waveforms), _LEAST_FRAMES)
    count = -(-frames // most)
    if count <= 1 or model.config.front_end == "mfcc":
        return apply(model, params, waveforms, padded, method="project")
    each = -(-frames // count)
    length = (each - 1) * hop + field
    missing = (count * each - 1) * hop + field - waveforms.shape[1]
    padded = jnp.pad(waveforms, ((0, 0), (0, max(missing, 0))))

    def project(start: Array) -> Array:
        piece = jax.lax.dynamic_slice_in_dim(padded, start, length, axis=1)
        return apply(model, params, piece, method="project")

    pieces = jax.lax.map(project, jnp.arange(count) * each * hop)  # [pieces, B, T, D]
    pieces = jnp.moveaxis(pieces, 0, 1)
    return pieces.reshape(len(waveforms), -1, pieces.shape[-1])[:, :frames]


def run(
    forward: Forward,
    recordings: Iterable[Recording],
    *,
    on_bad: Bad,
    lengths: Lengths = "fixed",
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[float, float], None] = lambda done, total: None,
    missing: MutableMapping[str, float] | None = None,
) -> Iterator[Part]:
    """Computes recordings, the longest first.

    Args:
      forward: What to compute.
      recordings: In any order; the results do not depend on it.
      on_bad: Called with a recording that cannot be used, and the reason; may raise. First with
        those that cannot be opened, in the given order; the others when they are computed.
      lengths: What batches are padded to: 'fixed' serves any later call without compiling again,
        'fitted' to these recordings pads them less.
      say: Called with messages: what is resampled or mixed down.
      progress: Called with the seconds of audio that more are done, and the total.
      missing: Gets the seconds that recordings, by name, end too early; None: a message at the end.

    Yields:
      `Part`s; those of one recording in the order of their frames, none of the last of a bad one.
    """
    batch, running, bad = [], collections.deque(), set()
    order = long_audio.by_length(recordings, on_bad=on_bad, num_workers=forward.options.num_workers)
    for note in long_audio.notes([header for _, header in order]):
        say(note)
    known = [header.num_samples for _, header in order]
    forward.ladder.fit(known if lengths == "fitted" else ())
    short, total = {} if missing is None else missing, sum(known) / audio.SAMPLE_RATE
    progress(0.0, total)
    pieces = _pieces(forward, order, on_bad, short)

    def submit() -> None:
        running.append((batch, forward.submit([piece.waveform for piece in batch])))

    def fetch() -> Iterator[Part]:
        for part in _fetch(*running.popleft(), bad, on_bad):
            yield part
            progress(_length(part) / part.num_frames * part.num_samples / audio.SAMPLE_RATE, total)

    try:
        for piece in pieces:
            if batch and not _fits(forward, batch, piece):
                submit()
                batch = []
            batch.append(piece)
            while len(running) > 1:
                yield from fetch()
        if batch:
            submit()
        while running:
            yield from fetch()
    finally:
        pieces.close()
    if short and missing is None:
        say(long_audio.missing_note(short))


def _fits(forward: Forward, batch: list[_Piece], piece: _Piece) -> bool:
    rung, own = (forward.ladder.rung(len(p.waveform)) for p in (batch[0], piece))
    if forward.exact and rung != own:
        return False
    return own <= rung <= 2 * own and len(batch) < forward.rows(rung)


def _fetch(batch: list[_Piece], computed: Any, bad: set[str], on_bad: Bad) -> Iterator[Part]:
    """Parts of a batch; `bad` gets, by id, recordings whose features are not finite."""
    host, finite = jax.tree.map(np.asarray, computed)
    for row, piece in enumerate(batch):
        if piece.recording.id in bad:
            continue
        # copied: a part must not keep the whole batch in memory
        arrays = jax.tree.map(lambda x, r=row, p=piece: x[r, p.start : p.stop].copy(), host)
        good = [np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)]
        if not (all(good) and finite[row, piece.start : piece.stop].all()):
            bad.add(piece.recording.id)
            on_bad(
                piece.recording,
                f"{piece.recording.name}: the network gives features that are not finite, its "
                "parameters may be damaged: take another checkpoint (RUN/checkpoints/STEP)",
            )
            continue
        counts = (piece.first, piece.num_frames, piece.num_samples)
        yield Part(piece.recording, arrays, *counts, ends_batch=row + 1 == len(batch))


def whole(parts: Iterable[Part]) -> Iterator[Part]:
    """Joins the parts of a recording; it ends a batch where no other recording is half computed."""
    held: dict[str, list[Part]] = {}
    for part in parts:
        if part.recording.id not in held:
            held.clear()  # of a recording that turned out to be bad
        held.setdefault(part.recording.id, []).append(part)
        if part.first + _length(part) == part.num_frames:
            own = held.pop(part.recording.id)
            arrays = own[0].arrays
            if len(own) > 1:
                arrays = jax.tree.map(lambda *some: np.concatenate(some), *(p.arrays for p in own))
            yield own[0]._replace(arrays=arrays, ends_batch=part.ends_batch and not held)


def _length(part: Part) -> int:
    return len(jax.tree.leaves(part.arrays)[0])


def _pieces(
    forward: Forward, pairs: list, on_bad: Bad, missing: MutableMapping[str, float]
) -> Iterator[_Piece]:
    """Decoded audio, a bounded number of recordings ahead."""
    options = forward.options
    longest = int(options.chunk_seconds * audio.SAMPLE_RATE)

    def prepare(pair: tuple[Recording, long_audio.Header]) -> np.ndarray | long_audio.Scan:
        recording, header = pair
        keep = lambda seconds: missing.update({recording.name: seconds})
        with audio.explained(recording.name):
            if header.num_samples > longest:
                return long_audio.scan(recording, on_missing=keep)
            waveform = recording.load(on_missing=keep)
            if len(waveform) > longest:  # the header was wrong
                return long_audio.scan(recording)
            return audio.normalise(waveform)

    for (recording, _), future in ahead(prepare, pairs, num_workers=options.num_workers):
        try:
            yield from _cut(forward, recording, future.result())
        except (audio.AudioError, OSError) as error:
            on_bad(recording, str(error))


def _cut(forward: Forward, recording: Recording, ready: Any) -> Iterator[_Piece]:
    samples = ready.num_samples if isinstance(ready, long_audio.Scan) else len(ready)
    if samples < forward.field:
        raise audio.AudioError(
            f"{recording.name}: too short, {samples} samples at 16 kHz, expected at least "
            f"{forward.field} ({forward.field / audio.SAMPLE_RATE * 1000:g} ms)"
        )
    frames = num_frames(samples, forward.conv_layers)
    if isinstance(ready, np.ndarray):
        yield _Piece(recording, ready, 0, frames, 0, frames, samples)
        return
    hop, options = forward.hop, forward.options
    chunk = int(options.chunk_seconds * audio.SAMPLE_RATE) // hop * hop
    overlap = int(options.overlap_seconds * audio.SAMPLE_RATE) // hop * hop
    overlap = max(overlap, -(-2 * forward.field // hop) * hop)
    sizes = {"frames": frames, "chunk": chunk, "overlap": overlap, "hop": hop}
    for wave, begin, first, end in long_audio.chunks(recording, ready, **sizes):
        yield _Piece(recording, wave, first - begin, end - begin, first, frames, samples)
