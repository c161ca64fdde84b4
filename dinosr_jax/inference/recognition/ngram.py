"""A small bigram of words, in ARPA's form, where KenLM's own tools are not at hand.

Interpolated absolute discounting (Ney, Essen and Kneser 1994) with one discount.
"""

import collections
import itertools
import math
from collections.abc import Iterable

from dinosr_jax.errors import UserError

DISCOUNT = 0.5
START, END, UNKNOWN = "<s>", "</s>", "<unk>"


class Bigram:
    """Probabilities of words after a word; <unk>, of words never seen, has a count of one."""

    def __init__(self, sentences: Iterable[str]):
        """Counts the words of sentences, which spaces separate; raises UserError without any."""
        self.pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for sentence in sentences:
            if words := [word for word in sentence.split() if word not in (START, END, UNKNOWN)]:
                self.pairs.update(itertools.pairwise([START, *words, END]))
        if not self.pairs:
            raise UserError("the transcripts hold no word: there is nothing to count")
        self._words, self._firsts, self._kinds = (collections.Counter() for _ in range(3))
        for (first, word), count in self.pairs.items():
            self._words[word] += count
            self._firsts[first] += count
            self._kinds[first] += 1
        self._total = self._words.total() + 1  # one for <unk>
        self.vocabulary = sorted(self._words)

    def unigram(self, word: str) -> float:
        """Probability of a word after anything."""
        return self._words.get(word, 1) / self._total

    def backoff(self, first: str) -> float:
        """Probability, after a word, of all words that were never seen after it."""
        return DISCOUNT * self._kinds[first] / self._firsts[first] if self._firsts[first] else 1.0

    def bigram(self, first: str, word: str) -> float:
        """Probability of a word after another."""
        count = max(self.pairs[first, word] - DISCOUNT, 0)
        seen = count / self._firsts[first] if count else 0.0
        return seen + self.backoff(first) * self.unigram(word)

    def to_arpa(self) -> str:
        """The text of an ARPA file."""
        log = lambda p: f"{math.log10(p):.7f}"
        unknown = f"{log(self.unigram(UNKNOWN))}\t{UNKNOWN}"
        ones = [unknown, f"-99\t{START}\t{log(self.backoff(START))}"]
        for word in self.vocabulary:
            weight = "" if word == END else f"\t{log(self.backoff(word))}"
            ones.append(f"{log(self.unigram(word))}\t{word}{weight}")
        twos = [f"{log(self.bigram(a, b))}\t{a} {b}" for a, b in sorted(self.pairs)]
        head = ["\\data\\", f"ngram 1={len(ones)}", f"ngram 2={len(twos)}", "", "\\1-grams:"]
        return "\n".join([*head, *ones, "", "\\2-grams:", *twos, "", "\\end\\", ""])
