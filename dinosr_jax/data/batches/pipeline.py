"""Plan -> decoded, normalised, cropped and stacked batches.

Batch k is a pure function of (records, plan, k), read at random access: a run resumed at step k
starts there at once and sees the same batches. tf.data serves as a pool of threads here, which
makes whole batches ahead and gives them in order.

Shapes: B rows of the batch that this host reads, S samples.
"""

import atexit
import contextlib
import functools
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.batches.crops import BatchPlan, Crops, plan_options
from dinosr_jax.data.batches.held_out import HeldOutPlan
from dinosr_jax.data.batches.lengths import FIELD, HOP
from dinosr_jax.data.batches.padding import EMPTY, PaddedPlan
from dinosr_jax.data.manifest import Manifest, Records, load_manifest
from dinosr_jax.errors import UserError

_LOG = logging.getLogger(__name__)
_OPEN: "weakref.WeakSet[BatchIterator]" = weakref.WeakSet()
_END_OF_STEPS = np.iinfo(np.int64).max


@functools.cache
def _tensorflow() -> Any:
    """Imports tensorflow where batches are made ahead."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):  # tensorflow would take all of their memory
        with contextlib.suppress(RuntimeError):  # tensorflow has them already
            tf.config.set_visible_devices([], kind)
    return tf


class PipelineError(UserError, RuntimeError):
    """Batches cannot be made; the message says of which data, why, and what to do."""


class SpeechBatch(NamedTuple):
    """The rows of one batch that this host reads."""

    step: int
    # [B, S] float32, normalised over the whole utterance before cropping, zeros after its end
    waveforms: np.ndarray
    ids: list[str]  # '' where a row is empty
    num_bad: int  # rows replaced because their record is damaged

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What goes to the devices."""
        return {"waveforms": self.waveforms}


class SpeechData:
    """One split, ready to be read in batches.

    Attributes:
      manifest: the utterances in use.
      plan: the batches.
      fingerprint: of the manifest; a run that is resumed must find the same.
      left_out: how many utterances are shorter than `min_seconds`.
      batches_per_epoch: after so many, every utterance was used at most once.
      shares: of a mixture `MixturePlan.shares`, else None.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        records: Records,
        plan: BatchPlan | HeldOutPlan | PaddedPlan,
        left_out: int = 0,
        data_config: Any,
    ):
        """Joins the parts, as `open_split` makes them.

        Args:
          manifest: the utterances that the plan counts.
          records: their audio, at the manifest's positions.
          plan: made from `manifest.num_samples`.
          left_out: number of utterances that the manifest's filter left out.
          data_config: has num_workers, which decode a batch each, and prefetch_batches, the
            finished batches that wait at most.
        """
        self.manifest, self.plan, self.left_out = manifest, plan, left_out
        self.fingerprint, self.batches_per_epoch = manifest.fingerprint, plan.num_batches
        self.shares = getattr(plan, "shares", None)
        self._records = records
        names = ("num_workers", "prefetch_batches")
        self._ahead = {name: getattr(data_config, name) for name in names}

    @functools.cached_property
    def speakers(self) -> dict[str, int]:
        """Numbers of the speakers, 0, 1, ..., by id of the utterance."""
        _, numbers = np.unique(self.manifest.speakers.astype(str), return_inverse=True)
        return dict(zip(self.manifest.ids, numbers.tolist(), strict=True))

    def batches(
        self,
        start_step: int = 0,
        num_steps: int | None = None,
        *,
        share: tuple[int, int, int] = (0, 1, 1),
    ) -> "BatchIterator":
        """The batches from a step on; to be closed when left half way (`with`, or `close()`).

        Args:
          start_step: the first step; starting late costs nothing.
          num_steps: how many; None for no end.
          share: (first, last, parts): this host reads the rows from first / parts to last / parts
            of every global batch.
        """
        stop = _END_OF_STEPS if num_steps is None else start_step + num_steps
        first, last, parts = share

        def make_batch(step: int) -> SpeechBatch:
            size = len(self.plan.batch(step).indices)
            return self.make_batch(step, rows=slice(size * first // parts, size * last // parts))

        return BatchIterator(make_batch, start_step=start_step, stop_step=stop, **self._ahead)

    def make_batch(self, step: int, *, rows: slice = slice(None)) -> SpeechBatch:
        """Makes the batch of one step in this thread.

        Only the `rows` of the global batch are read. One whose record is damaged is replaced by the
        first good row of the global batch, and counted.

        Raises:
          PipelineError: every utterance of the global batch is damaged.
        """
        batch = self.plan.batch(step)
        own_rows = range(*rows.indices(len(batch.indices)))
        waveforms = np.empty((len(own_rows), batch.num_samples), np.float32)
        ids, num_bad, substitute = [], 0, None
        for place, row in enumerate(own_rows):
            used = row
            if not self._crop(batch, row=row, out=waveforms[place]):
                if substitute is None:
                    substitute = self._first_good(batch, step=step)
                used, waveforms[place] = substitute
                num_bad += 1
            index = batch.indices[used]
            ids.append("" if index == EMPTY else self.manifest.ids[index])
        return SpeechBatch(step, waveforms, ids, num_bad)

    def samples(self, step: int) -> int:
        """Samples of audio in the global batch of a step."""
        batch = self.plan.batch(step)
        real = batch.indices != EMPTY
        rest = self.manifest.num_samples[batch.indices] - batch.starts
        return int(np.minimum(rest, batch.num_samples)[real].sum())

    def has_empty_rows(self, step: int) -> bool:
        """Whether the global batch of a step is filled up with empty rows."""
        return bool((self.plan.batch(step).indices == EMPTY).any())

    def _first_good(self, batch: Crops, *, step: int) -> tuple[int, np.ndarray]:
        """The first row of the global batch whose record is good."""
        crop = np.empty(batch.num_samples, np.float32)
        rows = np.flatnonzero(batch.indices != EMPTY)
        for row in rows:
            if self._crop(batch, row=row, out=crop):
                return row, crop
        raise PipelineError(
            f"step {step}: all {len(rows)} utterances of the batch are damaged (see the "
            "warnings above). Check the disk, and prepare the dataset again."
        )

    def _crop(self, batch: Crops, *, row: int, out: np.ndarray) -> bool:
        """Reads, checks, normalises and crops one row into `out`; False, and a warning, if bad."""
        index, start = batch.indices[row], batch.starts[row]
        if index == EMPTY:
            out[:] = 0
            return True
        expected_id = self.manifest.ids[index]
        try:
            content, record_id = self._records[self.manifest.positions[index]]
            waveform, sample_rate = audio.decode_samples(content, name=record_id)
            if waveform.ndim > 1 or sample_rate != audio.SAMPLE_RATE:
                waveform = audio.load(content, name=record_id)
            num_samples = self.manifest.num_samples[index]
            if record_id != expected_id or len(waveform) != num_samples:
                raise PipelineError(
                    f"the record holds {record_id!r} with {len(waveform)} samples, the manifest "
                    f"says {num_samples} samples"
                )
        except Exception as error:  # array_record, protobuf and libsndfile raise many kinds
            _LOG.warning(
                "DAMAGED RECORD %s: %s. Another utterance of its batch is used instead; prepare "
                "the dataset again.",
                expected_id,
                error,
            )
            return False
        length = min(len(waveform) - start, batch.num_samples)
        out[length:] = 0
        audio.normalise(waveform, crop=slice(start, start + length), out=out[:length])
        return True


class BatchIterator:
    """Batches in the order of the steps, made ahead by tf.data. A context manager."""

    def __init__(
        self,
        make_batch: Callable[[int], SpeechBatch],
        *,
        start_step: int,
        stop_step: int,
        num_workers: int,
        prefetch_batches: int,
    ):
        """Starts making the batches of the steps from `start_step` to before `stop_step`."""
        self._iterator: Any = None
        # `make` must not keep the iterator alive: it has these three objects alone.
        closed = self._closed = threading.Event()
        errors = self._errors = []
        made: dict[int, SpeechBatch] = {}
        self._made = made  # tensorflow gets the numbers of the steps alone

        def make(step: np.ndarray) -> np.ndarray:
            if closed.is_set():
                raise RuntimeError("closed")
            try:
                made[int(step)] = make_batch(int(step))
            except Exception as error:
                errors.append(error)  # tensorflow would pass on its text only
                raise
            return step

        tf = _tensorflow()
        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = num_workers
        dataset = tf.data.Dataset.range(start_step, stop_step).map(
            lambda step: tf.numpy_function(make, [step], tf.int64),
            num_parallel_calls=num_workers,
            deterministic=True,
        )
        dataset = dataset.prefetch(prefetch_batches).with_options(options)
        self._iterator = dataset.as_numpy_iterator()
        _OPEN.add(self)

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> SpeechBatch:
        """Gives the next batch.

        Raises:
          StopIteration: after the last step, or when closed.
          PipelineError: a batch cannot be made.
        """
        if self._iterator is None:
            raise StopIteration
        try:
            return self._made.pop(int(next(self._iterator)))
        except StopIteration:
            self.close()
            raise
        except _tensorflow().errors.OpError as error:
            cause = self._errors[0] if self._errors else error
            self.close()
            raise cause from None

    def close(self) -> None:
        """Stops making batches; those under way are finished first. May be called twice."""
        self._closed.set()
        self._iterator = None  # tensorflow cancels and joins its threads here
        self._made.clear()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@atexit.register
def _close_all() -> None:
    """Ends tensorflow's threads before the interpreter."""
    for iterator in list(_OPEN):
        iterator.close()


def open_split(
    data_config: Any,
    *,
    split: str,
    seed: int,
    use: Literal["training", "held out"] = "training",
    field: int = FIELD,
    hop: int = HOP,
) -> SpeechData:
    """Opens a split of a prepared dataset.

    Args:
      data_config: `data` of a configuration.
      split: in TFDS syntax, such as 'train[:95%]'.
      seed: of order and crops.
      use: 'held out' uses every utterance (`HeldOutPlan`).
      field: samples that a frame of the network sees.
      hop: samples from one frame to the next.

    Raises:
      ManifestError: the dataset or the split is not there.
      PipelineError: too few utterances are long enough: to fill a batch, or held out none is.
    """
    where = {"dataset": data_config.dataset, "split": split}
    everything = load_manifest(data_config.data_dir, **where)
    manifest = everything.at_least(data_config.min_seconds)
    try:
        plan = (BatchPlan if use == "training" else HeldOutPlan)(
            manifest.num_samples,
            seed=seed,
            field=field,
            hop=hop,
            **plan_options(data_config),
        )
    except ValueError as error:
        raise PipelineError(
            f"split {split!r} of {data_config.data_dir}, {len(manifest)} of {len(everything)} "
            f"utterances of at least min_seconds = {data_config.min_seconds:g}: {error}"
        ) from None
    return SpeechData(
        manifest,
        records=Records(data_config.data_dir, **where),
        plan=plan,
        left_out=len(everything) - len(manifest),
        data_config=data_config,
    )
