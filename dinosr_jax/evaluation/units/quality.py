"""How much units know of phones: purity, PNMI, perplexity, bit rate (HuBERT's and spidr's figures).

The published rule: units, one every 20 ms, are repeated to 10 ms, phones are taken every 10 ms, and
both are trimmed to the shorter.

Shapes: T units of an utterance, P phones, U units of the inventory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data.phones.alignments import Alignment
from dinosr_jax.data.phones.phones import SILENCE, Phone, count_frames, frame_phones
from dinosr_jax.data.text_files import TextError
from dinosr_jax.errors import UserError
from dinosr_jax.inference.units import statistics
from dinosr_jax.objective import information

STEP_SECONDS = 0.01
_SHARES = ("pnmi", "phone_purity", "cluster_purity")
_RATES = ("bit_rate", "deduplicated_units_per_second")
_COLUMNS = (
    ("system", 10), ("layer", 5), ("PNMI", 7), ("phone purity", 12), ("cluster purity", 14),
    ("perplexity", 10), ("in use", 12), ("bit/s", 7), ("units/s", 7),
)  # fmt: skip
_AVERAGED = (*_SHARES, *_RATES, "perplexity", "units_in_use", "num_units")


class RuleError(UserError):
    """Units and phones cannot be laid side by side; the message says which time is wrong."""


class Quality(NamedTuple):
    """Unit quality of a set of utterances.

    `counts` [P, U] are frames of 10 ms; P is in the order of `phones`. Perplexity and rates are of
    all units of the utterances that are scored; `by_name` of these were found by their name without
    folder or extension. `without_phones` are utterances that have no alignment, `without_units`
    alignments that no units are of, `left_out` utterances whose lengths differ too much, by how
    many frames (alignment less units).
    """

    counts: np.ndarray
    phones: tuple[str, ...]
    phone_purity: float
    cluster_purity: float
    pnmi: float
    of_units: statistics.UnitStatistics
    num_utterances: int
    by_name: int
    without_phones: tuple[str, ...]
    without_units: int
    left_out: Mapping[str, int]
    seconds: float


class Rule(NamedTuple):
    """How units and phones are laid side by side; times in seconds, both multiples of 10 ms.

    Unit i is of the time from offset + i * unit. Where lengths differ by more than `tolerance`
    frames of 10 ms, 'raise' refuses, and 'skip' leaves the utterance out.
    """

    unit_seconds: float = 0.02
    offset_seconds: float = 0.0
    tolerance: int = 2
    bad: Literal["raise", "skip"] = "raise"

    def to_text(self) -> str:
        """The rule, as one line."""
        shift = self.offset_seconds
        later = f", from {shift:g} s of the utterance on" if shift else ""
        return (
            f"units of {1000 * self.unit_seconds:g} ms repeated {_steps(self.unit_seconds, 'unit')}"
            f" times to 10 ms{later}, phones at the centres of 10 ms, both trimmed to the shorter"
            f"{'' if shift else ' (the published rule)'}, which may be {self.tolerance} frames less"
        )


def measure(
    units: Mapping[str, np.ndarray],
    alignment: Alignment,
    *,
    num_units: int,
    rule: Rule | None = None,
) -> Quality:
    """Unit quality of all utterances that have phones.

    Args:
      units: Utterance's id -> [T] units, 0 to U - 1.
      alignment: Phones; those of `units` are found as `Alignment.match` does.
      num_units: U.
      rule: None for the published one.

    Raises:
      TextError: No utterance has phones, names are ambiguous, or lengths differ too much.
      ValueError: A unit is not 0 to U - 1.
      RuleError: Times are no multiples of 10 ms.
    """
    rule = rule or Rule()
    repeats = _steps(rule.unit_seconds, "unit_seconds")
    phones_of = alignment.match(units)
    if not phones_of:
        raise TextError(_nothing(units, alignment))
    lengths = {id_: count_frames(phones, step=STEP_SECONDS) for id_, phones in phones_of.items()}
    excess = {id_: lengths[id_] - repeats * len(units[id_]) for id_ in phones_of}
    left_out = {id_: more for id_, more in excess.items() if abs(more) > rule.tolerance}
    if left_out and (rule.bad == "raise" or 2 * len(left_out) > len(phones_of)):
        raise TextError(_too_different(left_out, lengths, rule))
    code = {label: number for number, label in enumerate(alignment.labels)}
    table = np.zeros(len(code) * num_units, np.int64)
    frames, runs = np.zeros((2, num_units), np.int64)
    scored = {id_: phones for id_, phones in phones_of.items() if id_ not in left_out}
    for id_, phones in scored.items():
        codes = np.asarray(units[id_])
        frames += statistics.count(codes, num_units=num_units)
        runs += statistics.count(statistics.run_lengths(codes)[0], num_units=num_units)
        of_phones = _phone_codes(phones, lengths[id_], code)
        pairs = _side_by_side(of_phones, np.repeat(codes, repeats), rule)
        table += np.bincount(pairs[0] * num_units + pairs[1], minlength=len(table))
    counts = table.reshape(len(code), num_units)
    if not counts.any():
        raise TextError(f"{alignment.path}: units and phones have no frame of 10 ms in common")
    return Quality(
        counts=counts,
        phones=alignment.labels,
        phone_purity=information.phone_purity(counts),
        cluster_purity=information.cluster_purity(counts),
        pnmi=information.pnmi(counts),
        of_units=statistics.describe(frames, runs, frame_rate=1 / rule.unit_seconds),
        num_utterances=len(scored),
        by_name=sum(id_ not in alignment.utterances for id_ in scored),
        without_phones=tuple(id_ for id_ in units if id_ not in phones_of),
        without_units=len(alignment.utterances) - len(phones_of),
        left_out=left_out,
        seconds=float(frames.sum()) * rule.unit_seconds,
    )


def _steps(seconds: float, name: str) -> int:
    """How many 10 ms."""
    steps = round(seconds / STEP_SECONDS) if np.isfinite(seconds) else 0
    least = 1 if name == "unit_seconds" else -np.inf
    if not (abs(steps * STEP_SECONDS - seconds) < 1e-9 and steps >= least):
        raise RuleError(f"{name}: found {seconds:g} s, expected a multiple of 10 ms (0.01)")
    return steps


def _phone_codes(phones: Sequence[Phone], num_frames: int, code: Mapping[str, int]) -> np.ndarray:
    """Number of the label of each 10 ms [frames]."""
    numbers = np.asarray([code[phone.label] for phone in phones] + [code[SILENCE]])
    return numbers[frame_phones(phones, num_frames=num_frames, step=STEP_SECONDS)]


def _side_by_side(phones: np.ndarray, units: np.ndarray, rule: Rule) -> np.ndarray:
    """Phones and units of the same 10 ms: [2, frames]."""
    shift = _steps(rule.offset_seconds, "offset_seconds")
    phones, units = phones[max(shift, 0) :], units[max(-shift, 0) :]
    both = min(len(phones), len(units))
    return np.stack([phones[:both], units[:both]])


def _nothing(units: Mapping[str, Any], alignment: Alignment) -> str:
    first = lambda names: next(iter(names), "none")
    return (
        f"{alignment.path}: found none of the {len(units)} utterances; units are of names such as "
        f"{first(units)!r}, phones of {first(alignment.utterances)!r} (--prefix adds a folder to "
        "the latter)"
    )


def _too_different(left_out: Mapping[str, int], lengths: Mapping[str, int], rule: Rule) -> str:
    worst = max(left_out, key=lambda id_: abs(left_out[id_]))
    phones = lengths[worst] * STEP_SECONDS
    units = phones - left_out[worst] * STEP_SECONDS
    half = "" if rule.bad == "raise" else ", more than half"
    advice = " or --skip-bad" if rule.bad == "raise" else ""
    return (
        f"{len(left_out)} of {len(lengths)} utterances{half}: units and phones differ by more than "
        f"{rule.tolerance} frames of 10 ms; the worst is {worst}: units {units:.2f} s, phones "
        f"{phones:.2f} s. Expected the same utterance of the same speech: check --unit_seconds "
        f"({rule.unit_seconds:g}) and --prefix; --tolerance=FRAMES{advice} accepts what is left"
    )


def to_row(quality: Quality, *, system: str, layer: int | None) -> dict[str, Any]:
    """A row of a file of results."""
    of_units = quality.of_units
    return {
        "system": system,
        "layer": layer,
        **{name: getattr(quality, name) for name in _SHARES},
        **of_units._asdict(),
        "frames": int(quality.counts.sum()),
        "utterances": quality.num_utterances,
        "counts": quality.counts.tolist(),
    }


def to_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of results as text, and their mean if there are several; units/s without repetitions."""
    lines = [[name for name, _ in _COLUMNS], *map(_cells, rows)]
    if len(rows) > 1:
        mean = {name: float(np.mean([row[name] for row in rows])) for name in _AVERAGED}
        lines.append(_cells(mean | {"system": "mean", "layer": None}))
    widths = [width for _, width in _COLUMNS]
    padded = lambda line: [
        text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)
    ]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *padded(line)]) for line in lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    layer = "-" if row["layer"] is None else str(row["layer"])
    shares = [f"{row[name]:.4f}" for name in _SHARES]
    in_use = f"{row['units_in_use']:.4g} of {row['num_units']:.4g}"
    rates = [f"{row[name]:.1f}" for name in _RATES]
    return [row["system"], layer, *shares, f"{row['perplexity']:.2f}", in_use, *rates]


def coverage(quality: Quality) -> str:
    """What was scored and what was not, as one line."""
    frames, missing = int(quality.counts.sum()), len(quality.without_phones)
    parts = [f"{quality.num_utterances} utterances, {quality.seconds / 60:.1f} minutes, {frames:,}"]
    parts[0] += " frames of 10 ms"
    if quality.by_name:
        parts.append(f"{quality.by_name} of them found by the name without its folder")
    if missing:
        parts.append(f"{missing} without phones (such as {quality.without_phones[0]}) not scored")
    if quality.without_units:
        parts.append(f"{quality.without_units} of the alignment without units")
    if quality.left_out:
        parts.append(f"{len(quality.left_out)} left out, too different in length")
    return "; ".join(parts)
