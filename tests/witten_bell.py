"""An n-gram of any order for tests, by interpolated Witten-Bell smoothing, in ARPA's form.

P(w | h) = (c(h w) + n(h) P(w | shorter h)) / (c(h) + n(h)), where n(h) counts the kinds of words
after h; below the unigram all words, the end and <unk> are as probable.
"""

import collections
import math


class WittenBell:
    def __init__(self, sentences, *, order):
        self.order, self.counts = order, collections.Counter()
        for sentence in sentences:
            words = ["<s>", *sentence.split(), "</s>"]
            for n in range(1, order + 1):
                self.counts.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        del self.counts[("<s>",)]
        self.totals, self.kinds = collections.Counter(), collections.Counter()
        for gram, count in self.counts.items():
            self.totals[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1
        self.words = [*sorted(gram[0] for gram in self.counts if len(gram) == 1), "<unk>"]

    def backoff(self, history):
        return self.kinds[history] / (self.totals[history] + self.kinds[history])

    def probability(self, history, word):
        if not self.totals[history]:
            return self.probability(history[1:], word)
        lower = self.probability(history[1:], word) if history else 1 / len(self.words)
        count, share = self.counts[*history, word], self.backoff(history)
        return (1 - share) * count / self.totals[history] + share * lower

    def log10(self, words):
        known = ["<s>", *(word if word in self.words else "<unk>" for word in words), "</s>"]
        histories = (tuple(known[max(0, i - self.order + 1) : i]) for i in range(1, len(known)))
        pairs = zip(histories, known[1:], strict=True)
        return sum(math.log10(self.probability(*pair)) for pair in pairs)

    def to_arpa(self):
        sections = []
        for n in range(1, self.order + 1):
            grams = sorted(gram for gram in self.counts if len(gram) == n)
            lines = [self._line(gram) for gram in grams]
            if n == 1:
                start = f"-99\t<s>\t{math.log10(self.backoff(('<s>',))):.7f}"
                lines += [start, f"{math.log10(self.probability((), '<unk>')):.7f}\t<unk>"]
            sections.append(lines)
        head = [f"ngram {n}={len(lines)}" for n, lines in enumerate(sections, start=1)]
        body = [
            "\n".join([f"\\{n}-grams:", *lines, ""]) for n, lines in enumerate(sections, start=1)
        ]
        return "\n".join(["\\data\\", *head, "", *body, "\\end\\", ""])

    def _line(self, gram):
        text = f"{math.log10(self.probability(gram[:-1], gram[-1])):.7f}\t{' '.join(gram)}"
        goes_on = len(gram) < self.order and self.totals[gram]
        return text + (f"\t{math.log10(self.backoff(gram)):.7f}" if goes_on else "")
