"""Published figures of the full-size run, for comparison."""

from typing import NamedTuple

CODEBOOK_SIZE = 256
SOURCE = (
    "LibriSpeech 960 h, 12 layers of width 768, 8 codebooks of 256, 63 minutes of speech an "
    "update; measured on dev-clean, mean over the codebooks. From the logs that SpidR's authors "
    "published of their DinoSR run."
)


class Point(NamedTuple):
    """Where the published run was after some updates."""

    step: int
    loss: float  # nats
    target_perplexity: float  # of 256
    codewords: int  # that occur, of 256


PUBLISHED_CURVE = (
    Point(0, 5.73, 80, 246),
    Point(2_500, 3.12, 172, 209),
    Point(5_000, 2.64, 201, 211),
    Point(10_000, 2.09, 189, 211),
    Point(20_000, 1.63, 181, 211),
    Point(50_000, 1.32, 177, 211),
    Point(100_000, 1.23, 170, 211),
    Point(200_000, 1.20, 159, 211),
    Point(400_000, 1.03, 159, 211),
)

# what, figure, measured on
PUBLISHED_RESULTS = (
    ("PNMI of the units of layer 5", "0.620", "dev-clean and dev-other"),
    ("Phone purity of the units of layer 5", "0.655", "dev-clean and dev-other"),
    ("ABX error of layer 5, within speakers", "4.05\u00a0%", "dev-clean, triphones"),
    ("ABX error of the units of layer 5, within speakers", "6.50\u00a0%", "dev-clean, triphones"),
    ("Phone recognition (SUPERB), phone error rate", "3.21\u00a0%", "test-clean"),
    (
        "Speech recognition (SUPERB), word error rate, no n-gram",
        "4.71\u00a0%",
        "test-clean",
    ),
)


# of SUPERB: kind of results -> task, metric, what the full-size network has
SUPERB = {
    "recognition": ("phone recognition", "per", "3.21\u00a0%"),
    "asr": ("speech recognition, no language model", "wer", "4.71\u00a0%"),
    "keywords": ("keyword spotting", "accuracy", ""),
    "intent": ("intent classification", "accuracy", ""),
    "slots": ("slot filling, F1 of slots", "f1", ""),
}


def overlapping(last_step: int) -> tuple[Point, ...]:
    """The published points up to a fifth beyond the last update; none for the start alone."""
    points = tuple(point for point in PUBLISHED_CURVE if point.step <= 1.2 * last_step)
    return points if len(points) > 1 else ()
