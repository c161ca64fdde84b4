"""Error rates of a recogniser on held-out speech while it trains, with examples.

Every process counts its own rows, and the counts are summed over all.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from dinosr_jax.data.batches.transcribed import TranscribedData
from dinosr_jax.data.vocabulary import Vocabulary
from dinosr_jax.model.feature_encoder import num_frames
from dinosr_jax.objective.ctc import best_path
from dinosr_jax.training import processes, sharding
from dinosr_jax.training.compiled import Programs
from dinosr_jax.training.ctc.step import make_recognition_step
from dinosr_jax.training.state import TrainState

_NUM_EXAMPLES = 3


class Edits(NamedTuple):
    """Those that make a hypothesis of a reference, as few as there can be."""

    substitutions: int
    deletions: int
    insertions: int


def count_edits(reference: Sequence, hypothesis: Sequence) -> Edits:
    """Edits between two sequences of words, letters or other labels."""
    from rapidfuzz.distance import Levenshtein

    operations = Levenshtein.editops(list(reference), list(hypothesis))
    counts = collections.Counter(operation.tag for operation in operations)
    return Edits(counts["replace"], counts["delete"], counts["insert"])


class Counts(NamedTuple):
    """Errors and reference lengths, in words and in letters (of phones: the same)."""

    utterances: int = 0
    words: int = 0
    word_errors: int = 0
    letters: int = 0
    letter_errors: int = 0

    def plus(self, reference: str, hypothesis: str, *, of_characters: bool) -> "Counts":
        """The sums with one more utterance."""
        words = (reference.split(), hypothesis.split())
        letters = (reference, hypothesis) if of_characters else words
        own = [1]
        for pair in (words, letters):
            own += [len(pair[0]), sum(count_edits(*pair))]
        return Counts(*(a + b for a, b in zip(self, own, strict=True)))


class WordErrors:
    """Measures states of a recogniser on the held-out split, by best path."""

    best = ("eval_wer", "eval_cer", "eval_loss")  # the best state has the least, in this order

    def __init__(
        self,
        config: Any,
        mesh: Mesh,
        abstract_state: Any,
        programs: Programs,
        *,
        eval_data: TranscribedData,
    ):
        self._config, self._mesh, self._programs, self._data = config, mesh, programs, eval_data
        self._vocabulary = Vocabulary(tuple(config.ctc.symbols))
        step = make_recognition_step(config)
        self._step = sharding.jit_eval_step(mesh, step, abstract_state, results="rows")
        self._examples: list[tuple[str, str]] = []

    def measure(self, state: TrainState) -> dict[str, float]:
        """Metrics: eval_loss (a mean over utterances, in nats), eval_wer, eval_cer, counts."""
        share = sharding.local_share(self._mesh)
        number = min(self._config.eval_batches, self._data.batches_per_epoch)
        batches = self._data.batches(0, number, share=share)
        counts, loss, examples = Counts(), 0.0, []
        for read, batch in sharding.to_devices(self._mesh, batches, lambda b: b.arrays):
            results = self._programs.get("evaluation", self._step, state, batch)(state, batch)
            losses, codes = map(sharding.local_rows, results)
            frames = num_frames(read.num_samples, self._config.model.conv_layers)
            for row, id_ in enumerate(read.ids):
                if not id_:
                    continue
                hypothesis = self._vocabulary.decode(best_path(codes[row, : frames[row]]))
                pair = (self._data.references[id_], hypothesis)
                counts = counts.plus(*pair, of_characters=self._vocabulary.of_characters)
                loss += float(losses[row])
                examples.append((id_, *pair))
        self._examples = [pair for _, *pair in sorted(examples)[:_NUM_EXAMPLES]]
        counts = Counts(*(processes.total(count) for count in counts))
        loss = processes.total(loss)
        return {
            "eval_loss": loss / max(counts.utterances, 1),
            "eval_wer": counts.word_errors / max(counts.words, 1),
            "eval_cer": counts.letter_errors / max(counts.letters, 1),
            "eval_num_utterances": counts.utterances,
        }

    def summary(self, step: int, metrics: Mapping[str, float]) -> str:
        """Lines for a person: the error rates, and a few examples."""
        rates = f"PER {metrics['eval_wer']:.1%}"
        if self._vocabulary.of_characters:
            rates = f"WER {metrics['eval_wer']:.1%}, CER {metrics['eval_cer']:.1%}"
        lines = [
            f"update {step}: held-out loss {metrics['eval_loss']:.2f}, {rates} "
            f"({metrics['eval_num_utterances']:.0f} utterances)"
        ]
        for reference, hypothesis in self._examples:
            lines += [f"  {line}" for line in marked(reference.split(), hypothesis.split())]
        return "\n".join(lines)


def marked(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[str, str]:
    """Reference over hypothesis, aligned; what differs is between *, what is missing is -."""
    from rapidfuzz.distance import Levenshtein

    above, below = [], []
    for kind, i, i_end, j, j_end in Levenshtein.opcodes(list(reference), list(hypothesis)):
        pairs = max(i_end - i, j_end - j)
        left = [*reference[i:i_end], *[""] * (pairs - (i_end - i))]
        right = [*hypothesis[j:j_end], *[""] * (pairs - (j_end - j))]
        for a, b in zip(left, right, strict=True):
            if kind != "equal":
                a, b = f"*{a}*" if a else "", f"*{b}*" if b else ""
            width = max(len(a), len(b), 1)
            above.append((a or "-" * width).ljust(width))
            below.append((b or "-" * width).ljust(width))
    return ("ref " + " ".join(above)).rstrip(), ("hyp " + " ".join(below)).rstrip()
