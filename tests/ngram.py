"""A small bigram with absolute discounting, written in ARPA's form; a real one, for tests."""

import collections
import math
from pathlib import Path

DISCOUNT = 0.5


class Bigram:
    """Interpolated absolute discounting over the words of some sentences, <unk> and </s>."""

    def __init__(self, sentences):
        self.pairs = collections.Counter()
        self.words = collections.Counter()
        for sentence in sentences:
            words = ["<s>", *sentence.split(), "</s>"]
            self.words.update(words[1:])
            self.pairs.update(zip(words[:-1], words[1:], strict=True))
        self.firsts = collections.Counter()
        self.kinds = collections.Counter()
        for (first, _), count in self.pairs.items():
            self.firsts[first] += count
            self.kinds[first] += 1
        self.total = sum(self.words.values()) + 1  # one for <unk>
        self.vocabulary = sorted(self.words)

    def unigram(self, word):
        return self.words.get(word, 1) / self.total

    def backoff(self, first):
        return DISCOUNT * self.kinds[first] / self.firsts[first] if first in self.firsts else 1.0

    def bigram(self, first, word):
        if not self.firsts[first]:
            return self.unigram(word)
        found = max(self.pairs[first, word] - DISCOUNT, 0) / self.firsts[first]
        return found + self.backoff(first) * self.unigram(word)

    def log10(self, words):
        """Of a sentence, with its end."""
        words = ["<s>", *words, "</s>"]
        known = [w if w in self.words or w == "<s>" else "<unk>" for w in words]
        pairs = zip(known[:-1], known[1:], strict=True)
        return sum(math.log10(self.bigram(first, word)) for first, word in pairs)

    def write(self, path: Path) -> None:
        log = lambda p: f"{math.log10(p):.7f}"
        ones = [f"{log(self.unigram('<unk>'))}\t<unk>", f"-99\t<s>\t{log(self.backoff('<s>'))}"]
        for word in self.vocabulary:
            weight = "" if word == "</s>" else f"\t{log(self.backoff(word))}"
            ones.append(f"{log(self.unigram(word))}\t{word}{weight}")
        twos = [f"{log(self.bigram(a, b))}\t{a} {b}" for a, b in sorted(self.pairs)]
        head = ["\\data\\", f"ngram 1={len(ones)}", f"ngram 2={len(twos)}", "", "\\1-grams:"]
        text = [*head, *ones, "", "\\2-grams:", *twos, "", "\\end\\", ""]
        path.write_text("\n".join(text), encoding="utf-8")
