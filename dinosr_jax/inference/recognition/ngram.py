"""A small bigram of words, in ARPA's form, where KenLM's own tools are not at hand.

Interpolated absolute discounting (Ney, Essen and Kneser 1994) with one discount. For a language
model of some size take KenLM's lmplz, whose files are read in the same way.
"""

import collections
import math
from collections.abc import Iterable, Sequence

DISCOUNT = 0.5
_START, _END, _UNKNOWN = "<s>", "</s>", "<unk>"


class Bigram:
    """Probabilities of words after a word; what was never seen is <unk>, with a count of one."""

    def __init__(self, sentences: Iterable[str]):
        """Counts the words of sentences, which spaces separate.

        Raises:
          ValueError: There is no word.
        """
        self.pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        self.words: collections.Counter[str] = collections.Counter()
        for sentence in sentences:
            if words := [word for word in sentence.split() if word not in (_START, _END, _UNKNOWN)]:
                words = [_START, *words, _END]
                self.words.update(words[1:])
                self.pairs.update(zip(words[:-1], words[1:], strict=True))
        if not self.words:
            raise ValueError("the transcripts hold no word: there is nothing to count")
        self._firsts: collections.Counter[str] = collections.Counter()
        self._kinds: collections.Counter[str] = collections.Counter()
        for (first, _), count in self.pairs.items():
            self._firsts[first] += count
            self._kinds[first] += 1
        self._total = sum(self.words.values()) + 1  # one for <unk>
        self.vocabulary = sorted(self.words)

    def unigram(self, word: str) -> float:
        """Probability of a word after anything."""
        return self.words.get(word, 1) / self._total

    def backoff(self, first: str) -> float:
        """What is left after a word for words that were never seen after it."""
        return DISCOUNT * self._kinds[first] / self._firsts[first] if self._firsts[first] else 1.0

    def bigram(self, first: str, word: str) -> float:
        """Probability of a word after another."""
        if not self._firsts[first]:
            return self.unigram(word)
        found = max(self.pairs[first, word] - DISCOUNT, 0) / self._firsts[first]
        return found + self.backoff(first) * self.unigram(word)

    def log10(self, words: Sequence[str]) -> float:
        """Logarithm to base 10 of the probability of a sentence, with its end."""
        words = [_START, *words, _END]
        known = [w if w in self.words or w == _START else _UNKNOWN for w in words]
        pairs = zip(known[:-1], known[1:], strict=True)
        return sum(math.log10(self.bigram(first, word)) for first, word in pairs)

    def to_arpa(self) -> str:
        """The text of an ARPA file."""
        log = lambda p: f"{math.log10(p):.7f}"
        unknown = f"{log(self.unigram(_UNKNOWN))}\t{_UNKNOWN}"
        ones = [unknown, f"-99\t{_START}\t{log(self.backoff(_START))}"]
        for word in self.vocabulary:
            weight = "" if word == _END else f"\t{log(self.backoff(word))}"
            ones.append(f"{log(self.unigram(word))}\t{word}{weight}")
        twos = [f"{log(self.bigram(a, b))}\t{a} {b}" for a, b in sorted(self.pairs)]
        head = ["\\data\\", f"ngram 1={len(ones)}", f"ngram 2={len(twos)}", "", "\\1-grams:"]
        return "\n".join([*head, *ones, "", "\\2-grams:", *twos, "", "\\end\\", ""])
