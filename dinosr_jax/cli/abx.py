"""Commands about ABX: `evaluate abx` and `evaluate items`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.evaluation import command_text
from dinosr_jax.cli.options import FROM_0, PATH, argument, option, output
from dinosr_jax.errors import UserError


@click.command("abx")
@argument("features")
@option("item", PATH, text="Item file.", required=True)
@option(
    "speaker", ["within", "across", "both"], "both", "X of the speaker of A and B, or of another."
)
@option(
    "context",
    ["triphone", "any"],
    "triphone",
    "Phones between the same neighbours, or wherever (for phoneme items).",
)
@option(
    "distance",
    ["angular", "euclidean", "kl_symmetric", "identical"],
    text="Between frames.  [default: angular; identical for units]",
)
@option("max_size_group", FROM_0, 10, "Of A, B and X of a cell, at most; 0 for all.")
@option("max_x_across", FROM_0, 5, "Speakers of X for each A and B, at most; 0 for all.")
@option("seed", FROM_0, 0, "Of both.")
@option("frame_rate", text="Frames a second.  [default: what was written beside, else 50]")
@option("layer", FROM_0, text="[default: all that there are]")
@option("manifest", PATH, text="fairseq's .tsv of the recordings in its .npy and .len.")
@option("pad_end", text="Repeat a recording's last frame, twice at most.", is_flag=True)
@option("short", ["raise", "skip"], "raise", "Items without a frame.")
@shared.system
@output("JSON to write.")
def abx_command(**options: Any) -> None:
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
    from dinosr_jax.evaluation.abx import item_features, scoring
    from dinosr_jax.evaluation.abx.items import read_items

    items = read_items(options["item"])
    sources = item_features.open_features(
        options["features"],
        layer=options["layer"],
        frame_rate=_frame_rate(options["frame_rate"]),
        manifest=options["manifest"],
    )
    most = (options[name] or None for name in ("max_size_group", "max_x_across"))
    caps = scoring.Caps(*most, options["seed"])
    end = "repeat" if options["pad_end"] else "raise"
    speakers = ("within", "across") if options["speaker"] == "both" else (options["speaker"],)
    rows, notes = [], {}
    if len(speakers) == 2 and len(set(items.speakers)) == 1:
        speakers = ("within",)
        notes["one speaker: there is no error across speakers"] = None
    for source in sources:
        units = source.kind == "units"
        distance = options["distance"] or ("identical" if units else "angular")
        cut = {"distance": distance, "end": end, "short": options["short"]}
        gathered = item_features.gather(source, items, **cut)
        if skipped := len(items) - len(gathered.kept):
            notes[f"{skipped} of {len(items)} items have no frame, and are left out"] = None
        system = options["system"] or (units and source.about.get("source")) or "codebook"
        row = {"system": system, "layer": source.layer, "distance": distance}
        row |= {"representation": source.kind}
        for speaker in speakers:
            task = {"speaker": speaker, "context": options["context"]}
            with _bar(f"{source.path} {speaker}") as bar:
                score = scoring.measure(
                    gathered, items, distance=distance, caps=caps, progress=bar, **task
                )
            rows.append(row | task | score._asdict())
    rule = scoring.to_rule(sources[0].frame_rate, rows[0]["distance"], caps, end=end)
    click.echo("\n".join([scoring.to_table(rows), *notes, f"rule: {rule}"]))
    if options["output"] is not None:
        step = sources[0].about.get("step")
        result_files.write_results(
            options["output"],
            kind="abx",
            rows=rows,
            command=command,
            checkpoint=str(sources[0].about.get("checkpoint") or ""),
            step=step if type(step) is int else None,
            data=f"{options['item']}: {len(items)} items of {len(set(items.files))} recordings, "
            f"{len(set(items.speakers))} speakers",
            rule=rule,
        )
        click.echo(options["output"])


def _frame_rate(text: str | None) -> Any:
    from fractions import Fraction

    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate < 10**6:
        raise UserError(f"--frame_rate: found {text!r}, expected frames a second, such as 50")
    return rate


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; gives what `measure` calls."""
    from dinosr_jax.progress import progress_bar

    with progress_bar(unit=" pairs", unit_scale=True, desc=title) as bar:

        def progress(pairs: int, total: int) -> None:
            bar.total = total
            bar.update(pairs)

        yield progress


@click.command("items")
@argument("alignment")
@option(
    "speakers",
    PATH,
    text="Table with the columns file, speaker (an index.tsv); or a prepared dataset. Items are "
    "of the utterances in it only.",
    required=True,
)
@option("split", text="Of the prepared dataset: items of its utterances only.")
@option(
    "names",
    ["stem", "id"],
    text="Of recordings: without folders, as fastabx needs them, or with.  [default: stem where "
    "those of the alignment differ, else id]",
)
@option(
    "context", ["triphone", "phoneme"], "triphone", "Three phones, labelled by the second; or one."
)
@shared.of_alignment
@output("Item file.", required=True)
def items_command(**options: Any) -> None:
    """Make an item file for `evaluate abx` from an alignment.

    A triphone lasts from the onset of its first phone to the offset of its third, as ZeroSpeech
    has it; those with silence or spoken noise in them are left out. OUTPUT may end in .csv or
    .jsonl; else it is ZeroSpeech's format. Alignments as in `evaluate units`.
    """
    from dinosr_jax.evaluation.abx import items

    with one_line():
        everything = shared.read_given_alignment(options).utterances
        speakers = _speakers(options["speakers"], options["split"])
        chosen = {id_: phones for id_, phones in everything.items() if id_ in speakers}
        # where there is none, all are refused with their names
        made = items.make_items(chosen or everything, speakers, context=options["context"])
        shared_stem = items.sharing_a_stem(everything)
        names = options["names"] or ("id" if shared_stem else "stem")
        made = items.named_by_stem(made, chosen) if names == "stem" else made
        items.write_items(options["output"], made)
    click.echo(
        f"{options['output']}: {len(made)} {options['context']} items of "
        f"{len(set(made.files))} recordings, {len(set(made.speakers))} speakers; recordings are "
        f"named {'without' if names == 'stem' else 'with'} folders (--names={names})"
    )
    if left_out := len(everything) - len(chosen):
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
