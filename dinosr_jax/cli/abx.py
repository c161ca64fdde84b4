"""Commands about ABX: `evaluate abx` and `evaluate items`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.evaluation import command_text, evaluate


@evaluate.command()
@click.argument("features", type=shared.LocalPath())
@click.option("--item", required=True, type=shared.LocalPath(), help="Item file.")
@click.option(
    "--speaker",
    type=click.Choice(["within", "across", "both"]),
    default="both",
    show_default=True,
    help="X of the speaker of A and B, or of another.",
)
@click.option(
    "--context",
    type=click.Choice(["triphone", "any"]),
    default="triphone",
    show_default=True,
    help="Phones between the same neighbours, or wherever (for phoneme items).",
)
@click.option(
    "--distance",
    type=click.Choice(["angular", "euclidean", "kl_symmetric", "identical"]),
    help="Between frames.  [default: angular; identical for units]",
)
@click.option(
    "--max_size_group",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Of A, B and X of a cell, at most; 0 for all.",
)
@click.option(
    "--max_x_across",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Speakers of X for each A and B, at most; 0 for all.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of both.")
@click.option("--frame_rate", help="Frames a second.  [default: what was written beside, else 50]")
@click.option("--layer", type=click.IntRange(min=0), help="[default: all that there are]")
@click.option(
    "--manifest",
    type=shared.LocalPath(),
    help="fairseq's .tsv of the recordings in its .npy and .len.",
)
@click.option("--pad_end", is_flag=True, help="Repeat a recording's last frame, twice at most.")
@click.option(
    "--short",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Items without a frame.",
)
@shared.system
@click.option("--output", type=shared.LocalPath(), help="JSON to write.")
def abx(**options: Any) -> None:
    """ABX error: is a phone closer to itself, said elsewhere, than to another?

    FEATURES is a folder that `extract` wrote ([T, D] .npy, or layer_05/ and so on), or units with
    names, as `units` writes them. The item file is ZeroSpeech's and fastabx's (#file onset offset
    #phone prev-phone next-phone speaker; .csv and .jsonl too); `evaluate items` makes one. The
    error is that of fastabx: distances by dynamic time warping, divided by the length of the
    path; chance is 50 %. ZeroSpeech 2021 has the caps 10 and 5, discophon 0 and 5
    (500 and 5 for any context).
    """
    with one_line():
        _evaluate_abx(options, command_text(click.get_current_context()))


def _evaluate_abx(options: dict[str, Any], command: str) -> None:
    from dinosr_jax.evaluation import result_files
    from dinosr_jax.evaluation.abx import item_features
    from dinosr_jax.evaluation.abx import scoring as task
    from dinosr_jax.evaluation.abx.items import read_items

    items = read_items(options["item"])
    sources = item_features.open_features(
        options["features"],
        layer=options["layer"],
        frame_rate=_frame_rate(options["frame_rate"]),
        manifest=options["manifest"],
    )
    caps = task.Caps(
        options["max_size_group"] or None, options["max_x_across"] or None, options["seed"]
    )
    end = "repeat" if options["pad_end"] else "raise"
    rows, told = [], {}
    if options["speaker"] == "both" and len(set(items.speakers)) == 1:
        options = options | {"speaker": "within"}
        told["one speaker: there is no error across speakers"] = None
    for source in sources:
        distance = options["distance"] or ("identical" if source.kind == "units" else "angular")
        gathered = item_features.gather(
            source, items, distance=distance, end=end, short=options["short"]
        )
        if skipped := len(items) - len(gathered.kept):
            told[f"{skipped} of {len(items)} items have no frame, and are left out"] = None
        rows += _measured(gathered, items, source, distance, caps, options)
    rule = task.to_rule(sources[0].frame_rate, rows[0]["distance"], caps, end=end)
    click.echo("\n".join([task.to_table(rows), *told, f"rule: {rule}"]))
    if options["output"] is not None:
        about = sources[0].about
        step = about.get("step")
        result_files.write_results(
            options["output"],
            kind="abx",
            rows=rows,
            command=command,
            checkpoint=str(about.get("checkpoint") or ""),
            step=step if type(step) is int else None,
            data=f"{options['item']}: {len(items)} items of {len(set(items.files))} recordings, "
            f"{len(set(items.speakers))} speakers",
            rule=rule,
        )
        click.echo(options["output"])


def _measured(
    gathered: Any, items: Any, source: Any, distance: Any, caps: Any, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of results of one layer."""
    from dinosr_jax.evaluation.abx.scoring import measure

    said = source.about.get("source") if source.kind == "units" else None
    row = {"system": options["system"] or said or "codebook", "layer": source.layer}
    row |= {"distance": distance, "representation": source.kind}
    task = {"context": options["context"], "distance": distance, "caps": caps}
    both = ("within", "across") if options["speaker"] == "both" else (options["speaker"],)
    found = []
    for speaker in both:
        with _bar(f"{source.path} {speaker}") as progress:
            score = measure(gathered, items, speaker=speaker, progress=progress, **task)
        found.append(row | {"speaker": speaker, "context": task["context"]} | score._asdict())
    return found


def _frame_rate(text: str | None) -> Any:
    from fractions import Fraction

    if text is None:
        return None
    try:
        found = Fraction(text)
    except (ValueError, ZeroDivisionError):
        found = Fraction(0)
    if not 0 < found < 10**6:
        raise ValueError(f"--frame_rate: found {text!r}, expected frames a second, such as 50")
    return found


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; gives what `measure` calls."""
    from dinosr_jax.progress import progress_bar

    with progress_bar(unit=" pairs", unit_scale=True, desc=title) as shown:

        def progress(pairs: int, total: int) -> None:
            shown.total = total
            shown.update(pairs)

        yield progress


@evaluate.command()
@click.argument("alignment", type=shared.LocalPath())
@click.option(
    "--speakers",
    required=True,
    type=shared.LocalPath(),
    help="Table with the columns file, speaker (an index.tsv); or a prepared dataset. Items are "
    "of the utterances in it only.",
)
@click.option("--split", help="Of the prepared dataset: items of its utterances only.")
@click.option(
    "--names",
    type=click.Choice(["stem", "id"]),
    help="Of recordings: without folders, as fastabx needs them, or with.  [default: stem where "
    "those of the alignment differ, else id]",
)
@click.option(
    "--context",
    type=click.Choice(["triphone", "phoneme"]),
    default="triphone",
    show_default=True,
    help="Three phones, labelled by the second; or one.",
)
@shared.of_alignment
@click.option("--output", required=True, type=shared.LocalPath(), help="Item file.")
def items(**options: Any) -> None:
    """Make an item file for `evaluate abx` from an alignment.

    A triphone lasts from the onset of its first phone to the offset of its third, as ZeroSpeech
    has it; those with silence or spoken noise in them are left out. OUTPUT may end in .csv or
    .jsonl; else it is ZeroSpeech's format. Alignments as in `evaluate units`.
    """
    from dinosr_jax.evaluation.abx.items import (
        make_items,
        named_by_stem,
        sharing_a_stem,
        write_items,
    )

    with one_line():
        aligned = shared.read_given_alignment(options)
        speakers = _speakers(options["speakers"], options["split"])
        everything = aligned.utterances
        wanted = {id_: phones for id_, phones in everything.items() if id_ in speakers}
        # where there is none, all are refused with their names
        made = make_items(wanted or everything, speakers, context=options["context"])
        names = options["names"] or ("id" if sharing_a_stem(everything) else "stem")
        made = named_by_stem(made, wanted) if names == "stem" else made
        write_items(options["output"], made)
    click.echo(
        f"{options['output']}: {len(made)} {options['context']} items of "
        f"{len(set(made.files))} recordings, {len(set(made.speakers))} speakers; recordings are "
        f"named {'without' if names == 'stem' else 'with'} folders (--names={names})"
    )
    if left_out := len(everything) - len(wanted):
        click.echo(
            f"{left_out} of {len(everything)} utterances of {options['alignment']} are left out: "
            f"{options['speakers']} does not name them"
        )


def _speakers(path: Path, split: str | None) -> dict[str, str]:
    """Speakers by utterance, of a table or of a prepared dataset."""
    from dinosr_jax.data import manifest
    from dinosr_jax.data.text_files import nfc
    from dinosr_jax.evaluation.abx.items import read_speakers

    if not path.is_dir():
        return read_speakers(path)
    names = [split] if split else manifest.split_names(path)
    parts = [manifest.load_manifest(path, split=name) for name in names]
    return {
        nfc(str(id_)): str(speaker)
        for part in parts
        for id_, speaker in zip(part.ids, part.speakers, strict=True)
    }
