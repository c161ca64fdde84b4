"""TFDS' own LibriSpeech builder, given one split at a time instead of the network.

Every utterance is decoded while it is written; what is damaged is left out and listed.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.datasets.librispeech import librispeech_dataset_builder as official

from dinosr_jax.data import audio
from dinosr_jax.data.prepare.archives import ROOT
from dinosr_jax.data.prepare.audio_folder import Encoding, nothing_usable, write_skipped
from dinosr_jax.data.prepare.checking import MIN_SAMPLES
from dinosr_jax.data.prepare.sources import SourceError
from dinosr_jax.data.threads import map_in_threads
from dinosr_jax.progress import progress_bar

URLS = official._DL_URLS  # by split; TFDS has no public list
# Size and sha256 of OpenSLR's archives, by address, as TFDS has recorded them.
RECORDED = checksums.load_url_infos(epath.Path(official.__file__).with_name("checksums.tsv"))


class Origin(NamedTuple):
    """Where a split comes from: an unpacked archive, or a dataset that TFDS prepared earlier."""

    split: str
    name: str  # kept with the dataset, as `num_bytes`
    num_bytes: int
    folder: Path | None = None
    earlier: tfds.core.DatasetBuilder | None = None
    left_out: Sequence[tuple[str, str]] = ()  # what `unpack` took out


class Librispeech(official.Builder, skip_registration=True):
    """TFDS' own builder of one split; `speech` is a FLAC file, or WAV (`encoding` 'pcm16')."""

    name = "librispeech"
    code_path = None  # where TFDS would look for checksums of downloads: they are verified before
    get_metadata = official.Builder.get_metadata

    def __init__(
        self,
        *,
        encoding: Encoding = "original",
        origin: Origin | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ):
        """Makes a builder of what is at `origin`; None reads what is written."""
        self._encoding = encoding
        self._origin = origin
        self._num_workers = num_workers
        super().__init__(config="lazy_decode", file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        if self._encoding == "original":
            return info
        speech = tfds.features.Audio(
            sample_rate=audio.SAMPLE_RATE, dtype=np.int16, lazy_decode=True, file_format="wav"
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=info.description,
            features=tfds.features.FeaturesDict({**info.features, "speech": speech}),
            supervised_keys=info.supervised_keys,
            homepage=info.homepage,
            citation=info.citation,
            metadata=info.metadata,
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator]:
        del dl_manager
        origin = self._origin
        if origin.earlier is not None:
            self.info.metadata.update(origin.earlier.info.metadata or {})
            return {origin.split: self._generate_examples(None)}
        directory = epath.Path(origin.folder)
        unpacked = SimpleNamespace(download_and_extract=lambda urls: {origin.split: directory})
        try:
            return super()._split_generators(unpacked)
        except (ValueError, IndexError, OSError) as error:
            raise SourceError(
                f"{origin.name}: SPEAKERS.TXT or CHAPTERS.TXT cannot be read ({error}). Expected "
                "OpenSLR's tables: a number and fields between |. Download the archive again."
            ) from None

    def _generate_examples(self, directory: Any) -> Iterator[tuple[str, dict]]:
        origin = self._origin
        if origin.earlier is None:
            examples = super()._generate_examples(directory)
            total = sum(1 for _ in origin.folder.glob(f"{ROOT}/*/*/*/*.flac"))
        else:
            examples = _earlier_examples(origin)
            total = origin.earlier.info.splits[origin.split].num_examples
        stored = map_in_threads(self._store, examples, self._num_workers)
        skipped, num_written = list(origin.left_out), 0
        for key, example, reason in progress_bar(
            stored, total=total, unit="utterance", desc=f"write {origin.split}"
        ):
            if reason:
                skipped.append((key, reason))
                continue
            num_written += 1
            yield key, example
        if not num_written:
            raise SourceError(f"{origin.name}: {nothing_usable(skipped)}")
        # In TFDS' temporary folder: they appear together with the records.
        write_skipped(Path(self.data_path), skipped)

    def _store(self, item: tuple[str, dict]) -> tuple[str, dict, str]:
        """Decodes and checks one utterance; its key, what is stored, and why it is left out."""
        key, example = item
        try:
            content = _stored_bytes(example["speech"], name=key, encoding=self._encoding)
        except audio.AudioError as error:
            return key, example, str(error).removeprefix(f"{key}: ")
        return key, {**example, "speech": io.BytesIO(content)}, ""


def _stored_bytes(speech: Any, *, name: str, encoding: Encoding) -> bytes:
    """What is stored of a recording: a path, the bytes of a file, or samples [S].

    Raises:
      AudioError: it is damaged, too short, or not 16 kHz mono.
    """
    if isinstance(speech, np.ndarray):
        content, waveform, as_is = b"", speech.astype(np.int16), False
        audio.check(waveform, name=name)
    else:
        content = speech if isinstance(speech, bytes) else Path(speech).read_bytes()
        decoded = audio.decode(content, name=name)
        waveform, as_is = decoded.waveform, decoded.has_true_header
        if decoded.missing:  # LibriSpeech's own headers are right
            raise audio.AudioError(f"{name}: truncated, {decoded.missing} samples are missing")
        rate, channels = decoded.sample_rate, decoded.num_channels
        if (rate, channels) != (audio.SAMPLE_RATE, 1):
            what = f"{rate} Hz with {channels} channels"
            raise audio.AudioError(f"{name}: {what}, expected 16000 Hz mono")
    if len(waveform) < MIN_SAMPLES:
        what = f"too short: {len(waveform)} samples"
        raise audio.AudioError(f"{name}: {what}, a frame needs {MIN_SAMPLES}")
    if encoding == "pcm16":
        return audio.encode_pcm16(waveform)
    as_is = as_is and content.startswith(b"fLaC")
    return content if as_is else audio.encode_flac(waveform)


def _earlier_examples(origin: Origin) -> Iterator[tuple[str, dict]]:
    """The examples of a split of an earlier dataset; `speech` as it is stored there."""
    earlier, split = origin.earlier, origin.split
    skip = {"speech": tfds.decode.SkipDecoding()}
    if earlier.info.file_format.value == "array_record":
        examples = iter(earlier.as_data_source(split, decoders=skip))
    else:
        examples = tfds.as_numpy(earlier.as_dataset(split=split, decoders=skip))
    for example in examples:
        key = _as_text(example["id"])
        yield key, {**example, "id": key, "text": _as_text(example["text"])}


def _as_text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
