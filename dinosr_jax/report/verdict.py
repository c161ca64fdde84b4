"""The answer of a run: do its units tell more of phones than simple features do?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dinosr_jax.evaluation.result_files import Validated
from dinosr_jax.report.run_files import numbers

Row = dict[str, Any]
EQUAL = 0.01  # PNMI; closer than this, two are called equal
BASELINES = ("mfcc", "untrained")
_UNIT_NAMES = {
    "codebook": "codebook's units",
    "head": "units of the heads",
    "kmeans": "k-means units",
    "mfcc": "MFCC k-means",
    "untrained": "untrained network",
}
_FEATURE_NAMES = {
    "codebook": "this network",
    "head": "its heads",
    "kmeans": "its k-means units",
    "mfcc": "MFCC",
    "untrained": "untrained network",
}


class Answer(NamedTuple):
    """The best units of a run beside the two things that they must beat."""

    result: dict[str, Any]  # file that the rows are of
    units: Row | None
    mfcc: Row | None
    untrained: Row | None
    chosen: str = ""  # how the layer was, where there are several

    def bars(self) -> list[tuple[str, float, int | None]]:
        """(name, PNMI, number of units) of what there is, the units first."""
        named = (
            (_at_layer("units found", self.units), self.units),
            ("k-means on MFCC", self.mfcc),
            (_at_layer("untrained network", self.untrained), self.untrained),
        )
        return [(name, row["pnmi"], _size(row)) for name, row in named if row]


def system_name(system: str, kind: str) -> str:
    """What a system of a row is called in a result of a kind."""
    return (_UNIT_NAMES if kind == "units" else _FEATURE_NAMES).get(system, system)


def find_answer(
    results: Sequence[dict[str, Any]], validated: Validated | None = None
) -> Answer | None:
    """The best row of each system in the result that has most of them, the newest of equals.

    `results` are of kind 'units', the newest first. The layer in `validated` counts as the best,
    where the result is of another split. None where no result has a PNMI.
    """
    answers = []
    for result in results:
        units, chosen = _units(result, validated)
        mfcc, untrained = (_best(result["rows"], (name,), like=units) for name in BASELINES)
        if units or mfcc or untrained:
            answers.append(Answer(result, units, mfcc, untrained, chosen))
    count = lambda a: 4 * bool(a.units) + bool(a.mfcc) + bool(a.untrained)
    return max(answers, key=count) if answers else None


def _units(result: dict[str, Any], validated: Validated | None) -> tuple[Row | None, str]:
    """The row of the units that count, and how it was chosen."""
    best = _best(result["rows"], ("codebook", "head", "kmeans"))
    books = [r for r in result["rows"] if r.get("system") == "codebook"]
    if validated and not str(result.get("data")).startswith(f"{validated.split} of "):
        row = _best([r for r in books if r.get("layer") == validated.layer], ("codebook",))
        if row:
            return row, f"The layer was chosen while training, on {validated.split}."
    chosen = "The layer is the best one on the very speech that it is measured on."
    return best, chosen if best and len({r.get("layer") for r in books}) > 1 else ""


def sentences(answer: Answer) -> list[str]:
    """What the numbers say, in words, also where it is bad."""
    units, mfcc, untrained = answer.units, answer.mfcc, answer.untrained
    if units is None:
        return ["The units of this network are not measured; only what they must beat is."]
    pnmi, where = units["pnmi"], of_layer(units)
    texts = [f"The units{where} tell {pnmi:.1%} of what there is to know about the phones."]
    if mfcc:
        texts.append(_against_mfcc(pnmi - mfcc["pnmi"], mfcc["pnmi"]))
    else:
        texts.append("Whether that is better than k-means on MFCC is not measured.")
    if untrained:
        gain, figure = pnmi - untrained["pnmi"], f"{untrained['pnmi']:.1%}"
        if gain > EQUAL:
            texts.append(f"The same network untrained tells {figure}: training has helped.")
        elif gain < -EQUAL:
            texts.append(f"The same network untrained tells more, {figure}: training has harmed.")
        else:
            texts.append(f"The same network untrained tells as much, {figure}: nothing is learnt.")
    else:
        texts.append("What the untrained network tells is not measured.")
    if answer.chosen:
        texts.append(answer.chosen)
    sizes = [(name, size) for name, _, size in answer.bars() if size]
    if len({size for _, size in sizes}) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes)
        texts.append(f"Mind that the numbers of units differ ({listed}); more units raise PNMI.")
    return texts


def of_layer(row: Row | None) -> str:
    """' of layer 5', or ''."""
    layer = row.get("layer") if row else None
    return f" of layer {layer}" if isinstance(layer, int) else ""


def _at_layer(name: str, row: Row | None) -> str:
    layer = row.get("layer") if row else None
    return f"{name}, layer {layer}" if isinstance(layer, int) else name


def _against_mfcc(gain: float, mfcc: float) -> str:
    if gain > EQUAL:
        return f"That is better than k-means on MFCC, which tells {mfcc:.1%}."
    if gain < -EQUAL:
        return (
            f"That is worse than k-means on MFCC, which tells {mfcc:.1%}: this network has not "
            "discovered a phone inventory yet."
        )
    return f"That is no better than k-means on MFCC, which tells {mfcc:.1%}."


def _best(rows: Sequence[Row], systems: Sequence[str], *, like: Row | None = None) -> Row | None:
    """The row of highest PNMI; of those with as many units as another row, if there are any."""
    known = [r for r in rows if r.get("system") in systems and numbers(r, "pnmi") is not None]
    alike = [row for row in known if like and _size(row) == _size(like)]
    return max(alike or known, key=lambda row: row["pnmi"], default=None)


def _size(row: Row) -> int | None:
    size = row.get("num_units")
    return size if type(size) is int else None
