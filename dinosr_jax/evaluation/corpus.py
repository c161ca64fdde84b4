"""A prepared dataset with phones, and its splits: what a network is compared on."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.phones.alignments import Alignment
from dinosr_jax.evaluation.units import baselines
from dinosr_jax.evaluation.utterances import LabelError, Labelled, read_split
from dinosr_jax.inference import outputs
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording

_EXAMPLE_SECONDS = (2.0, 6.0)


class Corpus(NamedTuple):
    """What is compared on: a prepared dataset with phones, and its splits."""

    data_dir: Path
    alignment: Alignment
    train_split: str
    split: str
    recordings: Sequence[Recording]  # all of the training split
    train: Sequence[Labelled]  # those with phones, as the others
    test: Sequence[Labelled]
    valid: Sequence[Labelled] = ()

    def phones_are(self) -> str:
        """Where the phones are from: part of a line of text."""
        return f"phones of {self.alignment.path} ({self.alignment.kind})"


def open_corpus(
    data_dir: Path,
    alignment: Alignment,
    *,
    model: Pretrained,
    train_split: str,
    split: str,
    valid_split: str = "",
) -> Corpus:
    """Reads the splits of a prepared dataset; `valid_split` '' for none.

    What is shorter than the receptive field of `model` is left out.

    Raises:
      ManifestError: No such dataset or split.
      TextError: Names fit several utterances.
      LabelError: No utterance of `split` has phones.
    """
    read = functools.partial(
        read_split, data_dir, alignment=alignment, conv_layers=model.config.model.conv_layers
    )
    recordings, train = read(split=train_split)
    everything, test = read(split=split)
    valid = read(split=valid_split)[1] if valid_split else ()
    if not test:
        raise LabelError(
            f"{alignment.path}: found none of the {len(everything)} utterances of the split "
            f"{split!r}, such as {everything[0].id!r}, in it; its names are such as "
            f"{next(iter(alignment.utterances))!r} (--prefix adds a folder to them)"
        )
    return Corpus(data_dir, alignment, train_split, split, recordings, train, test, valid)


def write_example(model: Pretrained, corpus: Corpus, path: Path) -> None:
    """Writes an utterance of 2 to 6 s with its phones and codes, to be looked at."""
    low, high = _EXAMPLE_SECONDS
    seconds = lambda u: u.recording.num_samples / audio.SAMPLE_RATE
    distance = lambda u: max(low - seconds(u), seconds(u) - high, 0.0)
    chosen = min(corpus.test, key=lambda u: (distance(u), -len(set(u.phones)), u.recording.id))
    waveform = chosen.recording.load()
    by_layer = baselines.codebook_codes(model, [chosen.recording])
    arrays = {
        "waveform": waveform.astype(np.float32),
        "codes": np.stack([codes[chosen.recording.id] for codes in by_layer.values()]),
        "layers": np.asarray(list(by_layer)),
        "phone_starts": np.asarray([phone.start for phone in chosen.phones], np.float64),
        "phone_ends": np.asarray([phone.end for phone in chosen.phones], np.float64),
        "phone_labels": np.asarray([phone.label for phone in chosen.phones], np.str_),
        "id": np.asarray(chosen.recording.id, np.str_),
        "text": np.asarray(chosen.text, np.str_),
    }
    with outputs.replacing(path) as file:
        np.savez(file, **arrays)
