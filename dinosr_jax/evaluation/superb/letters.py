"""Speech recognition on frozen features: letters, with CTC, of a prepared dataset's transcripts.

Shapes: U labels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dinosr_jax.data import manifest as manifests
from dinosr_jax.data import vocabulary as vocabularies
from dinosr_jax.evaluation.probes.examples import Example, Examples, gather
from dinosr_jax.evaluation.probes.head_training import HeadSettings, HeadTask
from dinosr_jax.evaluation.probes.phone_recognition import ctc_task, error_rate
from dinosr_jax.evaluation.utterances import in_chance_order
from dinosr_jax.inference.recordings import open_inputs

_VALID_SHARE = 0.15  # of the training utterances, where no validation split is named


def read_letters(data: Path, *, train_split: str, valid_split: str, split: str) -> Examples:
    """Reads a prepared dataset with transcripts; what has none is left out.

    Args:
      data: Its data_dir.
      train_split: To learn from, in TFDS syntax.
      valid_split: To choose on; '' for 15 % of the training split, by a hash of the id.
      split: To test on.

    Raises:
      ManifestError: No such dataset or split.
    """
    left_out: list[tuple[str, str]] = []
    splits = {"train": train_split, "valid": valid_split, "test": split}
    parts = {part: _split(data, name, left_out) for part, name in splits.items() if name}
    if not valid_split:
        ordered = in_chance_order(parts["train"])
        number = max(1, round(_VALID_SHARE * len(ordered)))
        parts |= {"valid": ordered[:number], "train": ordered[number:]}
    named = ", ".join(f"{part} {name or '15 % of train'}" for part, name in splits.items())
    return gather(parts, data=f"{data} ({named})", left_out=left_out)


def _split(data: Path, split: str, left_out: list[tuple[str, str]]) -> list[Example]:
    manifest = manifests.load_manifest(data, dataset=manifests.dataset_in(data), split=split)
    texts = dict(zip(map(str, manifest.ids), manifest.texts, strict=True))
    examples = [Example(r, texts[r.id]) for r in open_inputs(data, split=split)]
    left_out += [(e.recording.name, "no transcript") for e in examples if not e.label.strip()]
    return [example for example in examples if example.label.strip()]


def vocabulary_of(
    examples: Examples, *, symbols: Literal["letters", "characters"]
) -> vocabularies.Vocabulary:
    """The 32 symbols of English, or the characters of the training part."""
    if symbols == "letters":
        return vocabularies.letters()
    return vocabularies.characters(example.label for example in examples.train)


def spelt(examples: Examples, *, vocabulary: vocabularies.Vocabulary) -> Examples:
    """Without the utterances whose transcripts hold something that is no symbol."""
    bad = {
        e.recording.id: (e.recording.name, f"its transcript holds {unknown[0]!r}, no symbol")
        for e in examples.everyone()
        if (unknown := vocabulary.unknown(e.label))
    }
    kept = [e.recording for e in examples.everyone() if e.recording.id not in bad]
    return examples._replace(left_out=(*examples.left_out, *bad.values())).only(kept)


def transcribe(
    examples: Examples, *, settings: HeadSettings, vocabulary: vocabularies.Vocabulary
) -> tuple[HeadTask, Mapping[str, np.ndarray]]:
    """The task, and transcripts as labels [U]: the word error rate of the best path counts.

    The outputs are those of `vocabulary`, of which number 0 is the blank.
    """

    def measure(references: Sequence, hypotheses: Sequence) -> dict[str, float]:
        reference_texts, texts = (
            [vocabulary.decode(labels) for labels in some] for some in (references, hypotheses)
        )
        words = [[text.split() for text in some] for some in (reference_texts, texts)]
        return {"wer": error_rate(*words), "cer": error_rate(reference_texts, texts)}

    labels = {e.recording.id: vocabulary.encode(e.label) for e in examples.everyone()}
    how = {"settings": settings, "measure": measure, "chosen_by": "wer"}
    return ctc_task(len(vocabulary.symbols), **how), labels
