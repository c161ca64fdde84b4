"""Signs of a collapse, read from a run's records, each with what a bad value looks like.

The bounds are rules of thumb, from the published run and from small ones that collapsed.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from dinosr_jax.evaluation.result_files import Validated
from dinosr_jax.recipes import published_recipe
from dinosr_jax.report.run_files import RunFiles, numbers
from dinosr_jax.training.guard import CODEWORD_USE, FEATURE_STD, PERPLEXITY, TEACHER_STD, Bound

Verdict = Literal["good", "watch", "bad", "unknown"]
Record = dict[str, Any]

INFORMATION = (0.2, 0.1)  # over the first bad, over the second to be watched
FOLLOWED = {
    "phones": "eval_pnmi",
    "position": "eval_position_information",
    "loudness": "eval_loudness_information",
    "speaker": "eval_speaker_information",
}


class Sign(NamedTuple):
    """One sign of health."""

    name: str
    value: str
    verdict: Verdict
    bad: str  # what a bad one looks like, and what causes it


def validated(run: RunFiles) -> Validated | None:
    """Which codebook had the highest PNMI on held-out speech, at the last look."""
    _, pnmi = latest(run.records, "eval_pnmi")
    layers, split = run.codebook_layers(), run.value("data", "eval_split")
    if not pnmi or len(pnmi) != len(layers) or not isinstance(split, str):
        return None
    return Validated(layers[max(range(len(pnmi)), key=pnmi.__getitem__)], split)


def signs(run: RunFiles) -> list[Sign]:
    """All signs, in the order in which one looks at them."""
    return [
        _finite(run.records),
        _lowest(run, PERPLEXITY),
        _lowest(run, CODEWORD_USE),
        _accuracy(run.records),
        _lowest(run, TEACHER_STD),
        _lowest(run, FEATURE_STD),
        *(_information(run, what) for what in ("position", "speaker", "loudness")),
    ]


def latest(records: Sequence[Record], field: str) -> tuple[int, list[float]]:
    """The step and the values of each codebook ([] for none), held out where it was measured.

    `field` is without eval_; its mean is the one value where it is not recorded by codebook.
    """
    for prefix in ("eval_", ""):
        name = f"{prefix}{field.removeprefix('eval_')}"
        for record in reversed(records):
            if numbers(record, f"{name}_0") is not None or numbers(record, name) is not None:
                books = [numbers(record, f"{name}_{k}") for k in range(len(record))]
                values = [value for value in books if value is not None]
                return record["step"], values or [record[name]]
        if field.startswith("eval_"):
            break
    return 0, []


def by_codebook(run: RunFiles) -> list[tuple[str, dict[str, float]]]:
    """What the codes of each codebook follow at the last evaluation."""
    found = {what: latest(run.records, field)[1] for what, field in FOLLOWED.items()}
    names = run.codebook_names()
    count = max((len(values) for values in found.values()), default=0)
    return [
        (names[k], {what: values[k] for what, values in found.items() if k < len(values)})
        for k in range(min(count, len(names)))
    ]


def _finite(records: Sequence[Record]) -> Sign:
    bad = (
        "NaN or infinity: the learning rate is too high for the batch, or gradients are not "
        "clipped. The run ends there; the checkpoint before is good."
    )
    losses = [(r["step"], r["loss"]) for r in records if isinstance(r.get("loss"), int | float)]
    if not losses:
        return Sign("Loss is a number", "not recorded", "unknown", bad)
    broken = [step for step, loss in losses if not math.isfinite(loss)]
    if broken:
        return Sign("Loss is a number", f"not at update {broken[0]:,}", "bad", bad)
    return Sign("Loss is a number", f"yes, {losses[-1][1]:.3g} at the end", "good", bad)


def _lowest(run: RunFiles, bound: Bound) -> Sign:
    """A figure that the guard of the run bounds, of the codebook with the lowest."""
    name, bad = _OF_BOUNDS[bound]
    lowest, of_codebook = _bound(run, bound.field), bound in (PERPLEXITY, CODEWORD_USE)
    bad = bad.format(lowest)
    size = run.whole("model", "codebook_size") if bound is PERPLEXITY else 1
    step, values = latest(run.records, bound.name)
    if not values or not size:
        return Sign(name, "not recorded", "unknown", bad)
    low, where = min(values), f"update {step:,}"
    if of_codebook:
        book = run.codebook_names()[values.index(low)] if len(values) > 1 else "mean"
        where = f"{book}, {where}"
    text = {PERPLEXITY: f"{low:.1f} of {size}", CODEWORD_USE: f"{low:.0%}"}.get(bound, f"{low:.3g}")
    return Sign(name, f"{text} ({where})", _low(low / size, lowest, bound.watch), bad)


def _accuracy(records: Sequence[Record]) -> Sign:
    name = "Accuracy against guessing"
    bad = (
        "No higher than the share of the most frequent code: only how frequent the codes are is "
        "learnt, nothing of the speech around the mask."
    )
    (step, accuracy), (_, guess) = latest(records, "accuracy"), latest(records, "top_code_share")
    if not accuracy or not guess:
        return Sign(name, "not recorded", "unknown", bad)
    reached, guessed = sum(accuracy) / len(accuracy), sum(guess) / len(guess)
    better = reached / max(guessed, 1e-9)
    verdict: Verdict = "bad" if better < 1.05 else "watch" if better < 1.5 else "good"
    return Sign(name, f"{reached:.1%} against {guessed:.1%} (update {step:,})", verdict, bad)


def _information(run: RunFiles, what: str) -> Sign:
    name = f"What the codes tell about {_NAMED[what]}, highest codebook"
    bad = _BAD[what]
    step, values = latest(run.records, FOLLOWED[what])
    if not values:
        return Sign(name, "not measured", "unknown", bad)
    high = max(values)
    text = f"{high:.1%} (update {step:,})"
    if what == "loudness":
        _, phones = latest(run.records, FOLLOWED["phones"])
        if not phones:
            return Sign(name, text, "unknown", bad)
        mean = sum(values) / len(values)
        return Sign(name, text, "watch" if mean > sum(phones) / len(phones) else "good", bad)
    verdict: Verdict = (
        "bad" if high > INFORMATION[0] else "watch" if high > INFORMATION[1] else "good"
    )
    return Sign(name, text, verdict, bad)


_ALIKE = (
    "Under {:g}: it says nearly the same of every frame. Loss and perplexity can look well for a "
    "while yet."
)
_OF_BOUNDS = {
    PERPLEXITY: (
        "Target perplexity, lowest codebook",
        "A few codes (under {:.0%} of the codebook) are a collapse: the student has made the "
        "targets trivial. Causes: the teacher follows too fast, a learning rate that is too high, "
        "too little audio an update, teacher.scope 'encoder' in a small run.",
    ),
    CODEWORD_USE: (
        "Codewords in use, lowest codebook",
        "A share that sinks: codewords die. The published first ones leave many far outside the "
        "data; shorter ones (codebook.init_scale 0.1) do not.",
    ),
    TEACHER_STD: ("Standard deviation of the teacher's output", _ALIKE),
    FEATURE_STD: ("Standard deviation of the feature encoder's output", _ALIKE),
}
_NAMED = {
    "position": "the position in the crop",
    "speaker": "the speaker",
    "loudness": "loudness",
}
_BAD = {
    "position": "Over 10 to 20 %: the codes count frames from the crop's ends, which are the "
    "easiest thing to predict under a mask. Crops of varied length and longer ones help.",
    "speaker": "Over 10 to 20 %: the codes say who speaks, not what is said. More speakers and "
    "lower layers help.",
    "loudness": "Higher than PNMI: the codes follow how loud it is more than the phones. Phones "
    "differ in loudness, so a part of it is right.",
}


def _bound(run: RunFiles, name: str) -> float:
    bound = numbers(guard, name) if isinstance(guard := run.value("guard"), dict) else None
    return published_recipe().guard[name] if bound is None else bound


def _low(share: float, bad: float, watch: float) -> Verdict:
    return "bad" if share < bad else "watch" if share < watch else "good"
