"""The curves of a run: which there are, how each is drawn, and all of them as one picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dinosr_jax import files

Record = dict[str, Any]
LEAST_SHARE = 0.25  # at the top of an axis of shares, so that little looks little

# Okabe and Ito's colours, which the colour-blind distinguish, without yellow; a dash pattern each
# for black and white.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


class Panel(NamedTuple):
    """One chart over the updates."""

    name: str
    title: str  # what to see
    axis: str  # what is on the y axis, with its unit
    fields: tuple[str, ...]  # of a record; of `codebook` lines, the first that is recorded
    lines: Literal["field", "codebook"] = "field"  # one a field, or one a codebook
    scale: Literal["linear", "log", "share"] = "linear"  # 'share' begins at 0
    hint: str = ""  # what a good and a bad one look like


PANELS = (
    Panel(
        "loss",
        "Loss: how hard the targets are to predict",
        "loss of a frame (CTC: an utterance)",
        ("loss", "eval_loss"),
        hint="In nats; of data2vec a squared error. It falls, on held-out speech too. Under 1 nat "
        "within some thousands of updates, with a target perplexity of a few codes, it is a "
        "collapse and no success.",
    ),
    Panel(
        "word-errors",
        "Errors on held-out speech, best path",
        "edits / length of the reference",
        ("eval_wer", "eval_cer"),
        scale="share",
        hint="Both fall; letters first. A word error rate that stays at 1 while the letter error "
        "rate falls says that words are not whole yet.",
    ),
    Panel(
        "loss-by-codebook",
        "Loss of each codebook",
        "cross-entropy (nats)",
        ("loss",),
        "codebook",
        hint="The codebooks stay close together; one that falls away from the others is suspect.",
    ),
    Panel(
        "accuracy",
        "Accuracy: how often the code is predicted",
        "share of masked frames",
        ("accuracy", "eval_accuracy", "top_code_share"),
        hint="It must rise above the top code share, which is what always guessing the most "
        "frequent code would reach.",
    ),
    Panel(
        "explained-variance",
        "Variance of the targets explained",
        "share of the variance",
        ("explained_variance", "eval_explained_variance"),
        hint="It rises. One that comes close to 1 at once, with a standard deviation that falls, "
        "is a collapse.",
    ),
    Panel(
        "target-spread",
        "Spread of targets and predictions",
        "standard deviation",
        ("target_std", "prediction_std"),
        hint="The targets keep theirs; that of the predictions rises towards it.",
    ),
    Panel(
        "accuracy-by-codebook",
        "Accuracy of each codebook",
        "share of masked frames",
        ("accuracy",),
        "codebook",
        hint="All rise; none runs ahead to 1 while its perplexity falls.",
    ),
    Panel(
        "target-perplexity",
        "Target perplexity: codewords evenly in use",
        "2^entropy (codewords)",
        ("target_perplexity",),
        "codebook",
        hint="A third of the codewords and more is healthy; it rises in the first thousands of "
        "updates. A fall to a few codes is a collapse.",
    ),
    Panel(
        "prediction-perplexity",
        "Prediction perplexity: codewords expected",
        "2^entropy (codewords)",
        ("prediction_perplexity",),
        "codebook",
        hint="It comes close to the target perplexity, and stays there.",
    ),
    Panel(
        "codeword-use",
        "Codewords that occur at all",
        "share of the codebook",
        ("codeword_use",),
        "codebook",
        "share",
        hint="Most codewords occur. A share that falls step by step is a codebook that dies.",
    ),
    Panel(
        "pnmi",
        "PNMI: what the codes tell about phones",
        "I(phone; code) / H(phone)",
        ("eval_pnmi",),
        "codebook",
        "share",
        hint="This is the aim: it rises. Flat while the loss falls, the codes are predictable but "
        "are not phones.",
    ),
    Panel(
        "phone-purity",
        "Phone purity: how clean each code is",
        "share of frames",
        ("eval_phone_purity",),
        "codebook",
        "share",
        hint="The share of frames whose phone is the most frequent one of their code. It rises.",
    ),
    Panel(
        "codes-follow",
        "What the codes follow, on held-out speech",
        "share of its information",
        (
            "eval_pnmi",
            "eval_position_information",
            "eval_loudness_information",
            "eval_speaker_information",
        ),
        scale="share",
        hint="PNMI (phones) should lie above position in the crop and speaker, which should be "
        "near 0. Phones differ in loudness, so some of that is right.",
    ),
    Panel(
        "position-information",
        "Position in the crop, as told by the codes",
        "I(position; code) / H(position)",
        ("eval_position_information", "position_information"),
        "codebook",
        "share",
        hint="Near 0. Codes that follow the position in the crop are not phones. An estimate of "
        "few frames (a small batch) is too high, by chance alone.",
    ),
    Panel(
        "spread",
        "Spread of the networks' outputs",
        "standard deviation",
        ("teacher_std", "feature_encoder_std"),
        scale="log",
        hint="Neither falls towards 0: a network that says the same of everything has collapsed.",
    ),
    Panel(
        "learning-rate",
        "Learning rate",
        "learning rate",
        ("learning_rate",),
        hint="Up, held, down: the schedule of the configuration.",
    ),
    Panel(
        "ema-decay",
        "How slowly the teacher follows the student",
        "EMA decay of an update",
        ("ema_decay",),
        hint="It rises to its last value; 1 is a teacher that stands still.",
    ),
    Panel(
        "norms",
        "Norms of gradients, parameters and updates",
        "L2 norm",
        ("gradient_norm", "parameter_norm", "update_norm"),
        scale="log",
        hint="The parameters grow slowly; gradients without jumps of ten times and more.",
    ),
    Panel(
        "speed",
        "Speed of training",
        "seconds of audio a second",
        ("audio_seconds_per_second",),
        hint="Flat. Dips are waits for data, or other work on the machine.",
    ),
)


def draw_curves(records: Sequence[Record], figure_path: Path) -> None:
    """Draws the records of a run, in the order of the steps, into a PNG."""
    # The object interface: no global state, no display, safe beside a user's own figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if panel_lines(records, panel)]
    if not panels:
        return
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for k, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, k + 1)
        draw_panel(axes, records, panel)
        axes.set_title(panel.title, fontsize=9)
        axes.set_ylabel(panel.axis, fontsize=8)
        axes.set_xlabel("update", fontsize=8)
        if len(axes.lines) > 1:
            axes.legend(fontsize=7, ncols=2 if panel.lines == "codebook" else 1)
    with files.replacing(figure_path, sync=False) as file:
        figure.savefig(file, dpi=90, format="png")


def draw_panel(
    axes: Any, records: Sequence[Record], panel: Panel, *, labels: Sequence[str] = ()
) -> None:
    """Draws the lines of a panel, without title and legend; `labels` are names of codebooks."""
    lines = panel_lines(records, panel)
    styles = line_styles(len(lines), order="ranked" if panel.lines == "codebook" else "none")
    for k, ((field, points), style) in enumerate(zip(lines.items(), styles, strict=True)):
        label = line_name(field, panel)
        if panel.lines == "codebook" and k < len(labels):
            label = labels[k]
        marker = "." if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2, marker=marker, **style)
    axes.set_yscale("log" if panel.scale == "log" else "linear")
    if panel.scale == "share":
        step = records[0]["step"]
        axes.update_datalim([(step, 0), (step, LEAST_SHARE)])
        axes.autoscale_view()
    axes.grid(alpha=0.3)


def line_name(field: str, panel: Panel) -> str:
    """What a line is called in a legend: the number of a codebook, or the field in words."""
    if panel.lines == "codebook":
        return field.rpartition("_")[2]
    if panel.name == "codes-follow":
        words = field.removeprefix("eval_").removesuffix("_information")
        return "phones (PNMI)" if words == "pnmi" else words
    if panel.name == "word-errors":
        return {"eval_wer": "words (WER)", "eval_cer": "letters (CER)"}[field]
    words = field.removeprefix("eval_").replace("_", " ").replace(" std", "")
    return f"{words}, held out" if field.startswith("eval_") else words


def panel_lines(records: Sequence[Record], panel: Panel) -> dict[str, list[tuple[int, float]]]:
    """Field -> finite (step, value) of every line of a panel; over 0 on a logarithmic axis."""
    recorded = {name: None for record in records for name in record}
    fields = panel.fields
    if panel.lines == "codebook":
        first = next((field for field in fields if f"{field}_0" in recorded), None)
        fields = [f"{first}_{k}" for k in range(len(recorded))]
    lines = {field: _points(records, field) for field in fields if field in recorded}
    if panel.scale == "log":
        lines = {f: [(step, y) for step, y in points if y > 0] for f, points in lines.items()}
    return {field: points for field, points in lines.items() if points}


def line_styles(number: int, *, order: Literal["none", "ranked"]) -> list[dict[str, Any]]:
    """Colours and dashes that differ in print, too; 'ranked' goes from dark to light."""
    if order == "none":
        colours = [LINE_COLOURS[k % len(LINE_COLOURS)] for k in range(number)]
    else:
        from matplotlib import colormaps

        colours = [colormaps["viridis"](0.85 * k / max(number - 1, 1)) for k in range(number)]
    dashes = _DASHES if order == "none" else _DASHES[:4]
    return [{"color": c, "linestyle": dashes[k % len(dashes)]} for k, c in enumerate(colours)]


def _points(records: Sequence[Record], field: str) -> list[tuple[int, float]]:
    points = ((record["step"], record.get(field)) for record in records)
    return [(x, y) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]
