"""The curves of a run as one picture."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FOLLOWED = tuple(f"eval_{name}_information" for name in ("position", "loudness", "speaker"))
# title, fields of a record, whether there is one curve a codebook, logarithmic axis
_PANELS: Sequence[tuple[str, tuple[str, ...], bool, bool]] = (
    ("loss (nats)", ("loss", "eval_loss"), False, False),
    ("loss by codebook", ("loss",), True, False),
    ("prediction accuracy", ("accuracy", "eval_accuracy", "top_code_share"), False, False),
    ("accuracy by codebook", ("accuracy",), True, False),
    ("target perplexity by codebook", ("target_perplexity",), True, False),
    ("prediction perplexity by codebook", ("prediction_perplexity",), True, False),
    ("share of codewords in use", ("codeword_use",), True, False),
    ("what codes say about phones (held out)", ("eval_pnmi", "eval_phone_purity"), False, False),
    ("PNMI by codebook (held out)", ("eval_pnmi",), True, False),
    ("what else codes follow (held out)", _FOLLOWED, False, False),
    ("position in the crop, by codebook", ("position_information",), True, False),
    ("spread over frames", ("teacher_std", "feature_encoder_std"), False, True),
    ("learning rate", ("learning_rate",), False, False),
    ("EMA decay of the teacher", ("ema_decay",), False, False),
    ("norms", ("gradient_norm", "parameter_norm", "update_norm"), False, True),
    ("audio seconds per second", ("audio_seconds_per_second",), False, False),
)


def draw_curves(records: Sequence[dict[str, Any]], figure_path: Path) -> None:
    """Draws the records of a run into a PNG, replaced atomically.

    Args:
      records: Of metrics.jsonl, in the order of the steps.
      figure_path: PNG to write.
    """
    # The object interface: no global state, no display, safe beside a user's own figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not records:
        return
    figure = Figure(figsize=(16, 13), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, fields, by_codebook, logarithmic) in zip(
        figure.subplots(4, 4).flat, _PANELS, strict=True
    ):
        for field in fields:
            if not by_codebook:
                _plot(axes, records, field, label=field.replace("_", " "))
                continue
            k = 0
            while any(f"{field}_{k}" in record for record in records):
                _plot(axes, records, f"{field}_{k}", label=str(k))
                k += 1
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("update", fontsize=8)
        axes.grid(alpha=0.3)
        if logarithmic:
            axes.set_yscale("log")
        if axes.lines and (by_codebook or len(axes.lines) > 1):
            axes.legend(fontsize=7, ncols=2 if by_codebook else 1)
    temporary = figure_path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=90)
    os.replace(temporary, figure_path)


def _plot(axes: Any, records: Sequence[dict[str, Any]], field: str, *, label: str) -> None:
    points = [(record["step"], record[field]) for record in records if field in record]
    if points:
        marker = "." if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2, marker=marker)
