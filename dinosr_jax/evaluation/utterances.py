"""Utterances with phones, and which of them a probe learns from and is tested on."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data import manifest as manifests
from dinosr_jax.data.phones.alignments import PHONES_NAME, Alignment, phones_path, read_alignment
from dinosr_jax.data.phones.phones import Phone, Stress, frame_labels, read_lexicon
from dinosr_jax.data.text_files import nfc
from dinosr_jax.errors import UserError
from dinosr_jax.inference.recordings import Recording, open_inputs
from dinosr_jax.model.feature_encoder import ConvLayers, receptive_field


class LabelError(UserError):
    """There are no phones, or too few utterances with them; the message says what to do."""


class Labelled(NamedTuple):
    """An utterance, its phones in time, and what else is known; '' where it is not."""

    recording: Recording
    phones: tuple[Phone, ...]
    speaker: str = ""
    text: str = ""


class Division(NamedTuple):
    """Utterances to learn from and to be tested on, and how they were chosen, as one line."""

    train: tuple[Labelled, ...]
    test: tuple[Labelled, ...]
    rule: str


def find_alignment(
    data_dir: Path, *, given: Path | None = None, prefix: str = "", stress: Stress = "strip"
) -> Alignment:
    """The alignment in `given`, a file or folder of TextGrids, else that of the prepared dataset.

    `prefix` is put before every name in what is given; `stress` says whether AH0 is AH. Raises
    LabelError where there is none, TextError where it cannot be read.
    """
    if given is not None:
        return read_alignment(given, stress=stress).with_prefix(prefix)
    for dataset in manifests.DATASETS:
        path = phones_path(data_dir, dataset=dataset)
        if path is not None and path.is_file():
            return read_alignment(path, stress=stress)
    raise LabelError(
        f"{data_dir}: the prepared dataset carries no phones ({PHONES_NAME} beside its records); "
        "give them with --alignment=FILE"
    )


def spell(
    data_dir: Path, *, splits: Sequence[str], lexicon: Path, stress: Stress = "keep"
) -> Alignment:
    """Phones of the transcripts of some splits, by a lexicon: their order, not their times.

    A line of the lexicon is a word and its phones; of several, the first is taken. SUPERB keeps the
    digits of ARPAbet's vowels. Phone i is from i to i + 1 s; a word that the lexicon has not is
    <UNK>. Raises LabelError where the lexicon has no word of the transcripts.
    """
    words = read_lexicon(lexicon, stress=stress)
    spelt: dict[str, tuple[Phone, ...]] = {}
    known = 0
    for split in splits:
        manifest = manifests.load_manifest(
            data_dir, dataset=manifests.dataset_in(data_dir), split=split
        )
        for id_, text in zip(manifest.ids, manifest.texts, strict=True):
            spoken = nfc(text.upper()).split()
            known += sum(word in words for word in spoken)
            labels = [label for word in spoken for label in words.get(word, ["<UNK>"])]
            if labels:
                spelt[str(id_)] = tuple(Phone(i, i + 1, label) for i, label in enumerate(labels))
    if not known:
        raise LabelError(
            f"{lexicon}: has none of the words of {', '.join(splits)} of {data_dir}; expected "
            "lines of a word and its phones, and a dataset with transcripts"
        )
    return Alignment(spelt, "tsv", str(lexicon))


def read_split(
    data_dir: Path, *, split: str, alignment: Alignment, conv_layers: ConvLayers
) -> tuple[list[Recording], list[Labelled]]:
    """The recordings of a split of a prepared dataset, and those that have phones.

    What is shorter than the receptive field of `conv_layers` is left out. Raises ManifestError
    where there is no such dataset or split, TextError where names fit several utterances.
    """
    shortest = receptive_field(conv_layers)[0]
    recordings = [r for r in open_inputs(data_dir, split=split) if r.num_samples >= shortest]
    manifest = manifests.load_manifest(
        data_dir, dataset=manifests.dataset_in(data_dir), split=split
    )
    speakers_and_texts = dict(
        zip(manifest.ids, zip(manifest.speakers, manifest.texts, strict=True), strict=True)
    )
    phones = alignment.match(recording.id for recording in recordings)
    labelled = [
        Labelled(r, phones[r.id], *speakers_and_texts[r.id]) for r in recordings if r.id in phones
    ]
    return recordings, labelled


def phones_of_frames(
    utterance: Labelled, *, num_frames: int, conv_layers: ConvLayers
) -> np.ndarray:
    """The phone [T] in the middle of what each frame of the network reads; 'SIL' between phones."""
    field, hop = (samples / audio.SAMPLE_RATE for samples in receptive_field(conv_layers))
    return frame_labels(utterance.phones, num_frames=num_frames, step=hop, first=field / 2)


def in_chance_order(utterances: Iterable, *, key=lambda item: item.recording.id) -> list:
    """The same order on every machine, which has nothing to do with names, lengths or speakers."""
    digest = lambda item: hashlib.sha256(key(item).encode("utf-8", "surrogateescape")).digest()
    return sorted(utterances, key=digest)


def divide(train: Sequence[Labelled], test: Sequence[Labelled], *, share: float = 0.2) -> Division:
    """Utterances to learn from and to be tested on; no utterance is in both.

    By speaker, where several are known: the splits as they are if they share none, else `share` of
    the speakers is held out. By utterance, where there is one: the splits as they are, or by a hash
    of the id. `train` may be empty: then a part of `test` is learnt from. Raises LabelError where
    there are not two utterances.
    """
    tested = {utterance.recording.id for utterance in test}
    others = [utterance for utterance in train if utterance.recording.id not in tested]
    pool = [*others, *test]
    known = {u.speaker for u in pool}
    if len(pool) < 2 or not test:
        raise LabelError(
            f"found {len(others)} utterances with phones to learn from and {len(test)} to be "
            "tested on, expected two at least, one of them to be tested on; choose other splits"
        )
    if "" not in known and len(known) > 1:
        return _by_speaker(others, test, share)
    who = "the same speaker" if len(known) == 1 and "" not in known else "speakers not known"
    if others:
        return Division(tuple(others), tuple(test), f"by utterance, as the splits are; {who}")
    ordered = in_chance_order(test)
    held_out = min(len(ordered) - 1, max(1, round(share * len(ordered))))
    rule = f"by utterance, {share:.0%} of the split by a hash of the id; {who}"
    return Division(tuple(ordered[held_out:]), tuple(ordered[:held_out]), rule)


def _by_speaker(others: Sequence[Labelled], test: Sequence[Labelled], share: float) -> Division:
    """Some speakers are held out, those first that nothing is learnt from."""
    learnt, tested = ({u.speaker for u in some} for some in (others, test))
    if others and not learnt & tested:
        rule = f"by speaker, as the splits are: {len(learnt)} to learn from, {len(tested)} others"
        return Division(tuple(others), tuple(test), rule)
    pool, everyone = (others or test), learnt | tested
    ordered = in_chance_order(tested, key=str)
    ordered.sort(key=lambda speaker: speaker in learnt)  # stable
    held_out = set(ordered[: max(1, min(round(share * len(everyone)), len(everyone) - 1))])
    train = tuple(u for u in pool if u.speaker not in held_out)
    rule = f"by speaker, {len(held_out)} of {len(everyone)} held out by a hash of the name"
    return Division(train, tuple(u for u in test if u.speaker in held_out), rule)


def describe(utterances: Sequence[Labelled]) -> str:
    """How many, how long, of how many speakers: part of a line of text."""
    minutes = sum(u.recording.num_samples for u in utterances) / audio.SAMPLE_RATE / 60
    speakers = {u.speaker for u in utterances} - {""}
    who = f", {len(speakers)} speaker{'s' * (len(speakers) != 1)}" if speakers else ""
    return f"{len(utterances)} utterances, {minutes:.1f} minutes{who}"
