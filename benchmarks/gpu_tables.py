"""What benchmarks/gpu.py has measured, as text for benchmarks/RESULTS.md."""

from collections.abc import Iterable, Mapping
from typing import Any

# audio seconds a second, one H100: of a first visit, twice a published PyTorch run, 40 % of peak
GOALS = (2_500, 3_600, 7_900)
GOAL_RATIO = 1.3  # to PyTorch in the same run


def markdown(about: Mapping[str, Any], rows: Mapping[str, list[dict]]) -> str:
    """All parts that have rows.

    Args:
      about: Device, driver, versions, date.
      rows: Rows by part, with the fields that the scripts print.

    Returns:
      Markdown.
    """
    facts = [f"{name} {value}" for name, value in about.items() if name != "platform"]
    parts = [f"`bash benchmarks/gpu.sh`: {', '.join(facts)}."]
    for part, table in _TABLES.items():
        if not rows.get(part):
            continue
        parts.append(f"### {part.capitalize()}")
        try:
            parts += table(rows[part])
        except (KeyError, TypeError, ValueError) as error:  # of a row; its JSON is there
            parts.append(f"- cannot be shown: {error!r}")
    return "\n\n".join(parts)


def _table(titles: str, rows: Iterable[Iterable[Any]]) -> str:
    """A table; of a cell that is None nothing is known."""
    titles = [title.strip() for title in titles.split("|")]
    text = lambda cell: "" if cell is None else str(cell).replace("|", "/").replace("\n", " ")
    lines = [titles, ["---"] * len(titles), *([text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: float | None, form: str) -> str | None:
    """A number in a form, if there is one."""
    return None if value is None else format(value, form)


def failure(row: Mapping[str, Any]) -> str | None:
    """Why a row has no figures; None if it has."""
    if "refused" in row:
        return f"not on this device: {row['refused']}"
    if "out_of_memory" in row:
        return f"out of memory: {row['out_of_memory']}"
    if "failed" not in row:
        return None
    last = row.get("last_lines") or [""]
    return f"{row['failed']}: {last[-1].strip()[:200]}".rstrip(": ")


def is_too_large(row: Mapping[str, Any]) -> bool:
    """Whether a row says that memory did not suffice."""
    return "out_of_memory" in row or row.get("failed", "").startswith("out of memory")


def _parity(rows: list[dict]) -> list[str]:
    golden = [row for row in rows if "worst" in row]
    cells = [
        [row["compared"], row["arrays"], f"{row['worst']:.1e} ({row['worst_of']})",
         "; ".join(row["wrong"]) or "none"]
        for row in golden
    ]  # fmt: skip
    titles = "golden numbers, float32 | arrays | largest difference | further than the tests allow"
    parts = [_table(titles, cells)] * bool(golden)
    for row in rows:
        if "losses" in row:
            curve = " ".join(f"{loss:.3f}" for loss in row["losses"])
            parts.append(f"- {row['compared']}: loss {curve}")
        if "losses_apart" in row:
            parts.append(
                f"- bfloat16 beside float32: losses {row['losses_apart']:.2%} apart at most; "
                f"equal codes {row['equal_codes_before']:.2%} before, "
                f"{row['equal_codes_after']:.2%} after, of the same state, "
                f"{row['equal_codes_of_own_states']:.2%} of their own states"
            )
    return parts + [f"- {row['of']}: {text}" for row in rows if (text := failure(row))]


def _update(rows: list[dict]) -> list[str]:
    cells = []
    for row in rows:
        variant = [
            row["attention"],
            row["remat"],
            row.get("utterances", row.get("tried_utterances")),
        ]
        if text := failure(row):
            cells.append([*variant, text, *[None] * 6])
            continue
        compiled = f"{row['compile_seconds']} s" + " (kept)" * row["compiled_before"]
        cells.append([
            *variant, f"{row['median']:.4f} s ({row['least']:.4f})", f"{row['audio_per_s']:,.0f}",
            f"{row['tflops']:.1f}", f"{row['peak_share']:.1%}", f"{row['peak_gib']:.1f} GiB",
            f"{row['needed_gib']:.1f} GiB", compiled,
        ])  # fmt: skip
    titles = (
        "attention | remat | utterances | update, median (least) | audio s/s | TFLOP/s | of peak | "
        "peak memory | by the compiler | compile"
    )
    parts = [_table(titles, cells)]
    measured = [row for row in rows if failure(row) is None]
    if measured:
        best = max(measured, key=lambda row: row["audio_per_s"])
        most = max(measured, key=lambda row: row["utterances"])
        goals = [f"{g:,}: {'met' if best['audio_per_s'] >= g else 'not met'}" for g in GOALS]
        parts.append(
            f"- **Goals**, audio seconds a second on one H100: {'; '.join(goals)} (the fastest "
            f"here: {best['audio_per_s']:,.0f}, attention {best['attention']}, "
            f"remat {best['remat']})."
        )
        parts.append(
            f"- The largest batch that ran: {most['utterances']} utterances, "
            f"{most['audio_seconds']:,.0f} s, {most['peak_gib']:.1f} GiB at most."
        )
    return parts


def _peer(rows: list[dict]) -> list[str]:
    cells, parts = [], []
    for row in rows:
        if text := failure(row):
            cells.append([f"PyTorch, {row['peer']}", text, None, None, None])
            continue
        for side in ("jax", "torch"):
            found = row[side]
            name = f"PyTorch, {found['way']}" if side == "torch" else "JAX"
            times = f"{found['median']:.4f} s ({found['least']:.4f})"
            ratio = _shown(found.get("ratio"), ".2f")
            speed = [f"{found['audio_per_s']:,.0f}", f"{found['peak_gib']:.1f} GiB", ratio]
            cells.append([name, times, *speed])
        met = "met" if row["jax"]["ratio"] >= GOAL_RATIO else "not met"
        parts.append(f"- **Goal** {GOAL_RATIO} times PyTorch ({row['torch']['way']}): {met}.")
    titles = "side | update, median (least) | audio s/s | peak memory | times as fast as PyTorch"
    return [_table(titles, cells), *parts]


def _features(rows: list[dict]) -> list[str]:
    cells = []
    for row in rows:
        if text := failure(row):
            cells.append(["", text, None, None, None])
            continue
        times = f"{row['median']:.4f} s ({row['least']:.4f})"
        batch = f"{row['utterances']} x {row['seconds']:g} s"
        ratio = _shown(row.get("ratio"), ".2f")
        side = f"{row['side']}, {row['way']}"
        cells.append([side, batch, times, f"{row['audio_per_s']:,.0f}", ratio])
    titles = "side | batch | median (least) | audio s/s | PyTorch's time over ours"
    return [_table(titles, cells)]


def _kernels(rows: list[dict]) -> list[str]:
    parts = []
    for row in rows:
        if text := failure(row):
            parts.append(f"- {text}")
            continue
        names = ("attention", "remat")
        variant = ", ".join(f"{name} {row[name]}" for name in names if name in row)
        parts.append(f"{row['ms_per_update']:.2f} ms of kernels an update, {variant}.")
        cells = [
            [k["kernel"], f"{k['ms']:.3f}", f"{k['share']:.1%}", k["place"]] for k in row["kernels"]
        ]
        parts.append(_table("kernel | ms an update | share | place in the model", cells))
    return parts


_TABLES = {
    "parity": _parity,
    "update": _update,
    "peer": _peer,
    "features": _features,
    "kernels": _kernels,
}
