import numpy as np
import pytest

from dinosr_jax.data.vocabulary import letters, phones
from dinosr_jax.inference.recognition.decoding import Clock, greedy, path_spans
from dinosr_jax.objective.ctc import best_path

CLOCK = Clock(field=400, hop=320)


def emissions_of(text, vocabulary):
    """Every character of the text has the most probability in a frame; '_' is the blank."""
    codes = [0 if c == "_" else vocabulary.symbols.index(c) for c in text]
    logits = np.random.default_rng(0).uniform(0, 1, (len(codes), len(vocabulary.symbols)))
    logits[np.arange(len(codes)), codes] = 3.0
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("__HH_II|||TTOO_O", "HI TOO"),
        ("|A|_|B", "A  B"),
        ("____", ""),
        ("|", ""),
        ("A_A", "AA"),
        ("AA", "A"),
    ],
)
def test_text_is_that_of_the_best_path(path, text):
    emissions = emissions_of(path, letters())
    found = greedy(letters(), CLOCK)(emissions)
    assert found.text == text
    assert " ".join(text.split()) == letters().decode(best_path(emissions.argmax(1)))
    assert found.score == pytest.approx(float(emissions.max(1).sum()), rel=1e-6)
    assert [word.word for word in found.words] == text.split()


def test_words_have_times():
    """Frame i is centred at 12.5 ms + 20 i ms."""
    found = greedy(letters(), CLOCK)(emissions_of("_HI__|_OO_", letters()))
    assert [tuple(word) for word in found.words] == [
        ("HI", 0.0225, 0.0625), ("O", 0.1425, 0.1825),
    ]  # fmt: skip


def test_phones_are_words():
    vocabulary = phones([["s", "AH"]])
    emissions = np.log(np.full((3, 6), 0.01, np.float32))
    emissions[[0, 1, 2], [5, 5, 4]] = np.log(0.9)
    found = greedy(vocabulary, CLOCK)(emissions)
    assert found.text == "s AH" and [word.word for word in found.words] == ["s", "AH"]


def test_no_frame_says_nothing():
    assert greedy(letters(), CLOCK)(np.empty((0, 32), np.float32)) == ("", (), 0.0)
    assert path_spans(np.empty(0, int)) == []
