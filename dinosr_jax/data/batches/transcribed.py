"""Speech with transcripts: whole utterances, padded, with their labels.

Shapes: B rows of the batch that this host reads, S samples, U labels.
"""

import collections
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import vocabulary as vocabularies
from dinosr_jax.data.audio import SAMPLE_RATE
from dinosr_jax.data.batches.padding import PaddedPlan
from dinosr_jax.data.batches.pipeline import PipelineError, SpeechData
from dinosr_jax.data.manifest import Manifest, Records, load_manifest
from dinosr_jax.data.phones.alignments import phones_path, read_alignment
from dinosr_jax.data.phones.phones import SILENCE, read_lexicon
from dinosr_jax.data.vocabulary import Vocabulary, VocabularyError, frames_needed

Use = Literal["training", "held out"]
_LABEL_GRID = 8  # labels of a batch are padded to multiples of it
_LOG = logging.getLogger(__name__)


class TranscribedBatch(NamedTuple):
    """The rows of one batch that this host reads."""

    step: int
    waveforms: np.ndarray  # [B, S] float32, normalised, zeros after the end
    num_samples: np.ndarray  # [B] int32, S where a row is empty
    labels: np.ndarray  # [B, U] int32, 0 after the end
    num_labels: np.ndarray  # [B] int32, 0 where a row is empty
    ids: list[str]  # '' where a row is empty
    num_bad: int  # rows replaced because their record is damaged

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What goes to the devices."""
        names = ("waveforms", "num_samples", "labels", "num_labels")
        return {name: getattr(self, name) for name in names}


class TranscribedData:
    """One split with transcripts, ready to be read in batches.

    Attributes:
      references: normalised transcripts by id.
      samples: step -> samples of audio in its global batch.
      left_out: reason -> how many utterances.
      fingerprint: of utterances and labels; a run that is resumed must find the same.
      batches_per_epoch: after so many, every utterance was used once.
    """

    def __init__(
        self,
        speech: SpeechData,
        *,
        references: Mapping[str, str],
        labels: Mapping[str, np.ndarray],
        left_out: Mapping[str, int],
    ):
        """Joins the parts; `open_transcribed` makes them from a config."""
        self.references, self.left_out = references, dict(left_out)
        self.batches_per_epoch, self.samples = speech.batches_per_epoch, speech.samples
        self._speech, self._labels = speech, labels
        manifest = speech.manifest
        self._samples = dict(zip(manifest.ids, manifest.num_samples.tolist(), strict=True))
        digest = hashlib.sha256(speech.fingerprint.encode())
        for id_ in manifest.ids:
            digest.update(labels[id_].tobytes() + b"|")
        self.fingerprint = digest.hexdigest()[:16]
        sizes = np.asarray([len(labels[id_]) for id_ in manifest.ids])
        self._num_labels = {}  # of a row, by the length that it is padded to
        for rung in speech.plan.rungs:
            most = int(sizes[manifest.num_samples <= rung.num_samples].max(initial=1))
            self._num_labels[rung.num_samples] = -(-most // _LABEL_GRID) * _LABEL_GRID

    def summary(self) -> str:
        """The plan, and what was left out, in lines to print."""
        lines = [self._speech.plan.summary()]
        lines += [f"  {count} left out: {reason}" for reason, count in self.left_out.items()]
        return "\n".join(lines)

    def batches(
        self, start_step: int, num_steps: int, *, share: tuple[int, int, int]
    ) -> Iterator[TranscribedBatch]:
        """Batches from a step on; arguments as of `SpeechData.batches`."""
        with self._speech.batches(start_step, num_steps, share=share) as batches:
            for speech in batches:
                size, samples = speech.waveforms.shape
                labels = np.zeros((size, self._num_labels[samples]), np.int32)
                num_labels = np.zeros(size, np.int32)
                for row, id_ in enumerate(speech.ids):
                    own = self._labels[id_] if id_ else ()
                    labels[row, : len(own)] = own
                    num_labels[row] = len(own)
                real = [self._samples.get(id_, samples) for id_ in speech.ids]
                counts = (np.asarray(real, np.int32), labels, num_labels)
                yield TranscribedBatch(
                    speech.step, speech.waveforms, *counts, speech.ids, speech.num_bad
                )


def transcripts_of_split(
    data_config: Any, ctc_config: Any, *, split: str
) -> tuple[Manifest, dict[str, str]]:
    """Utterances of a split and their transcripts as they are; phones with spaces between.

    The transcripts are by id, of those that have one; the split is in TFDS syntax.

    Raises:
      ManifestError: no such dataset or split.
      TextError: lexicon or alignment cannot be read.
      VocabularyError: the vocabulary is of phones, which are not known.
    """
    where = {"dataset": data_config.dataset, "split": split}
    manifest = load_manifest(data_config.data_dir, **where)
    if ctc_config.language:
        spoken = manifest.languages == ctc_config.language
        if not spoken.any():
            known = ", ".join(sorted(set(manifest.languages))) or "none"
            raise VocabularyError(
                f"config.ctc.language={ctc_config.language!r}: no utterance of {split!r} of "
                f"{data_config.data_dir} is in it; its languages are {known}"
            )
        manifest = manifest.take(spoken)
    texts = {id_: text for id_, text in zip(manifest.ids, manifest.texts, strict=True) if text}
    if ctc_config.vocabulary != "phones":
        return manifest, texts
    if ctc_config.lexicon:
        words = read_lexicon(Path(ctc_config.lexicon), stress="strip")
        spelt = {}
        for id_, text in texts.items():
            spoken = vocabularies.letters().normalise(text).split()
            spelt[id_] = " ".join(p for word in spoken for p in words.get(word, [f"<{word}>"]))
        return manifest, spelt
    path = data_config.alignment or phones_path(data_config.data_dir, dataset=data_config.dataset)
    if not path or not Path(path).exists():
        raise VocabularyError(
            f"config.ctc.vocabulary='phones': {data_config.data_dir} carries no phones; name an "
            "alignment with config.data.alignment, or a lexicon with config.ctc.lexicon"
        )
    spelt = {
        id_: " ".join(phone.label for phone in phones if phone.label != SILENCE)
        for id_, phones in read_alignment(path).match(manifest.ids).items()
    }
    return manifest, {id_: text for id_, text in spelt.items() if text}


def find_vocabulary(data_config: Any, ctc_config: Any) -> Vocabulary:
    """The vocabulary that a configuration asks for.

    Raises:
      VocabularyError: There is none.
      ManifestError, TextError: As `transcripts_of_split`.
    """
    if ctc_config.vocabulary == "letters":
        return vocabularies.letters()
    if ctc_config.vocabulary not in ("characters", "phones"):
        return vocabularies.read_dictionary(ctc_config.vocabulary)
    _, texts = transcripts_of_split(data_config, ctc_config, split=data_config.train_split)
    if ctc_config.vocabulary == "characters":
        return vocabularies.characters(texts.values())
    known = ([p for p in text.split() if not p.startswith("<")] for text in texts.values())
    return vocabularies.phones(known)


def open_transcribed(
    data_config: Any,
    ctc_config: Any,
    *,
    split: str,
    vocabulary: Vocabulary,
    field: int,
    hop: int,
    seed: int,
    use: Use = "training",
) -> TranscribedData:
    """Opens a split of a prepared dataset with its transcripts.

    Args:
      data_config: `data` of a configuration.
      ctc_config: `ctc` of it.
      split: in TFDS syntax.
      vocabulary: to spell the transcripts with.
      field: samples that a frame sees.
      hop: samples from one frame to the next.
      seed: of the order.
      use: 'training' leaves out what cannot be learnt from; 'held out' only what has no transcript
        or no frame, and spells what is no symbol as `<unk>`.

    Raises:
      ManifestError: the dataset or the split is not there.
      PipelineError: no utterance can be used, or a batch does not hold the longest.
    """
    manifest, texts = transcripts_of_split(data_config, ctc_config, split=split)
    references = {id_: vocabulary.normalise(text) for id_, text in texts.items()}
    bounds = (data_config.min_seconds, data_config.max_seconds) if use == "training" else None
    how = {"field": field, "hop": hop}
    labels, left_out = _label(manifest, references, vocabulary=vocabulary, bounds=bounds, **how)
    manifest = manifest.take(np.array([id_ in labels for id_ in manifest.ids], bool))
    try:
        plan = PaddedPlan(
            manifest.num_samples,
            seed=seed,
            max_batch_seconds=data_config.max_batch_seconds,
            batch_multiple=data_config.batch_multiple,
            max_rungs=data_config.max_rungs,
            **how,
        )
    except ValueError as error:
        reasons = "; ".join(f"{count} left out: {reason}" for reason, count in left_out.items())
        raise PipelineError(
            f"split {split!r} of {data_config.data_dir}: {error}" + f" ({reasons})" * bool(reasons)
        ) from None
    records = Records(data_config.data_dir, dataset=data_config.dataset, split=split)
    speech = SpeechData(manifest, records=records, plan=plan, data_config=data_config)
    return TranscribedData(speech, references=references, labels=labels, left_out=left_out)


def _label(
    manifest: Manifest,
    references: Mapping[str, str],
    *,
    vocabulary: Vocabulary,
    field: int,
    hop: int,
    bounds: tuple[float, float] | None,
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Labels of the utterances that can be used, and how many others there are, by reason.

    `bounds` are those of learnable utterances in seconds; None where nothing is learnt from them.
    """
    left_out: collections.Counter[str] = collections.Counter()
    labels, strange = {}, collections.Counter()
    for id_, num_samples in zip(manifest.ids, manifest.num_samples.tolist(), strict=True):
        text, frames = references.get(id_, ""), (num_samples - field) // hop + 1
        unknown = vocabulary.unknown(text)
        strange.update(unknown)
        own = vocabulary.encode(text, unknown="mark")
        if not text:
            reason = "no transcript"
        elif num_samples < field:
            reason = f"shorter than a frame of {field / SAMPLE_RATE * 1000:g} ms"
        elif bounds and num_samples < bounds[0] * SAMPLE_RATE:
            reason = f"shorter than min_seconds = {bounds[0]:g}"
        elif bounds and num_samples > bounds[1] * SAMPLE_RATE:
            reason = f"longer than max_seconds = {bounds[1]:g}"
        elif bounds and unknown:
            reason = "with characters or phones that are not in the vocabulary"
        elif bounds and frames_needed(own) > frames:
            reason = "with a transcript longer than its frames"
        else:
            labels[id_] = own
            continue
        left_out[reason] += 1
    if strange:
        shown = " ".join(repr(token) for token, _ in strange.most_common(20))
        _LOG.warning("in transcripts, but not in the vocabulary: %s", shown)
    return labels, dict(left_out)
