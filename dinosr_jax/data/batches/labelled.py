"""Held-out utterances whose phones are known, for unit quality: whole, padded to one length.

Shapes: B rows of the batch that this host reads, S samples, T frames.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.manifest import Manifest, Records, load_manifest
from dinosr_jax.data.phones.alignments import phones_path, read_alignment
from dinosr_jax.data.phones.phones import SILENCE, Phone, frame_labels
from dinosr_jax.data.text_files import TextError, nfc
from dinosr_jax.data.threads import map_in_threads

_LOG = logging.getLogger(__name__)


class LabelledBatch(NamedTuple):
    """The rows of one batch that this host reads."""

    waveforms: np.ndarray  # [B, S] float32, normalised, zeros after the end
    num_samples: np.ndarray  # [B] int32
    phones: np.ndarray  # [B, T] int32, -1 on padding and in rows that only fill the batch


class LabelledData:
    """The utterances of a split that have phones.

    Attributes:
      phones: names of the phones, sorted; their place is their number.
      manifest: the utterances in a random order, always the same.
      num_samples: S; what is longer is cropped to its first S samples.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        phones: Mapping[str, tuple[Phone, ...]],
        records: Records,
        data_config: Any,
    ):
        """Joins the parts, as `open_labelled` makes them; `phones` of every utterance, by id."""
        order = np.random.Generator(np.random.Philox(key=0)).permutation(len(manifest))
        self.manifest = manifest.take(order)
        most = int(data_config.max_seconds * audio.SAMPLE_RATE)
        self.num_samples = int(min(most, manifest.num_samples.max()))
        labels = {phone.label for id_ in manifest.ids for phone in phones[id_]}
        self.phones = tuple(sorted(labels | {SILENCE}))
        self._number = {label: number for number, label in enumerate(self.phones)}
        self._alignment, self._records = phones, records
        self._batch_samples = int(data_config.max_batch_seconds * audio.SAMPLE_RATE)
        self._num_workers = data_config.num_workers

    def num_batches(self, parts: int) -> int:
        """How many batches all utterances make where batches are dealt to so many parts."""
        return -(-len(self.manifest) // self._batch_size(parts))

    def batches(
        self, num_batches: int, *, share: tuple[int, int, int], field: int, hop: int
    ) -> Iterator[LabelledBatch]:
        """The first batches, of one shape; a frame has the phone at its centre.

        `share` is as of `SpeechData.batches`; a frame sees `field` samples, the next begins `hop`
        samples later.
        """
        first, last, parts = share
        size = self._batch_size(parts)
        rows = range(size * first // parts, size * last // parts)
        places = [size * batch + row for batch in range(num_batches) for row in rows]
        read = functools.partial(self._read, field=field, hop=hop)
        made = map_in_threads(read, places, self._num_workers)
        for _ in range(num_batches):
            waveforms, lengths, phones = zip(*(next(made) for _ in rows), strict=True)
            yield LabelledBatch(np.stack(waveforms), np.array(lengths, np.int32), np.stack(phones))

    def _batch_size(self, parts: int) -> int:
        fits = self._batch_samples // self.num_samples // parts
        return min(max(fits, 1), -(-len(self.manifest) // parts)) * parts

    def _read(self, place: int, *, field: int, hop: int) -> tuple[np.ndarray, int, np.ndarray]:
        """Waveform, length and phones of a row; one that only fills the batch is silent."""
        waveform = np.zeros(self.num_samples, np.float32)
        numbers = np.full(max((self.num_samples - field) // hop + 1, 0), -1, np.int32)
        if place >= len(self.manifest):
            return waveform, self.num_samples, numbers
        id_ = self.manifest.ids[place]
        try:
            content, _ = self._records[self.manifest.positions[place]]
            whole = audio.load(content, name=id_)
        except Exception as error:  # array_record, protobuf and libsndfile raise many kinds
            _LOG.warning("DAMAGED RECORD %s: %s. It is left out of unit quality.", id_, error)
            return waveform, self.num_samples, numbers
        length = min(len(whole), self.num_samples)
        audio.normalise(whole, crop=slice(0, length), out=waveform[:length])
        frames, rate = max((length - field) // hop + 1, 0), audio.SAMPLE_RATE
        at = {"num_frames": frames, "step": hop / rate, "first": field / 2 / rate}
        labels = frame_labels(self._alignment[id_], **at)
        numbers[:frames] = [self._number[label] for label in labels]
        return waveform, length, numbers


def open_labelled(data_config: Any) -> LabelledData | None:
    """Opens the utterances of the held-out split that have phones.

    Args:
      data_config: `data` of a configuration; alignment '' is the one that `prepare` wrote.

    Returns:
      The utterances, of any length; None where none has phones, or nothing is held out.

    Raises:
      ManifestError: the dataset or the split is not there.
      TextError: the alignment cannot be read, or has no utterance of the split.
    """
    if not data_config.eval_split:
        return None
    where = {"dataset": data_config.dataset, "split": data_config.eval_split}
    manifest = load_manifest(data_config.data_dir, **where)
    if data_config.alignment:
        phones = read_alignment(data_config.alignment).match(manifest.ids)
        if not phones:
            raise TextError(
                f"config.data.alignment={data_config.alignment}: found no utterance of the split "
                f"{data_config.eval_split!r} in it, such as {manifest.ids[0]}; expected their ids, "
                "or their names"
            )
    else:
        path = phones_path(data_config.data_dir, dataset=data_config.dataset)
        is_there = path is not None and path.is_file()
        known = read_alignment(path, kind="tsv").utterances if is_there else {}
        phones = {id_: known[nfc(id_)] for id_ in manifest.ids if nfc(id_) in known}
    if not phones:
        return None
    _LOG.info("unit quality: %d of %d held-out utterances have phones", len(phones), len(manifest))
    manifest = manifest.take(np.array([id_ in phones for id_ in manifest.ids]))
    records = Records(data_config.data_dir, **where)
    return LabelledData(manifest, phones=phones, records=records, data_config=data_config)
