"""What `sweep` does: emissions once, references, trials."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def tune(
    trained: Any,
    settings: dict[str, Any],
    known: dict[str, Any],
    wish: dict[str, Any],
    *,
    number: int,
    seed: int,
) -> dict[str, Any]:
    """Tries weights of beam search.

    Args:
      trained: A recogniser.
      settings: Of `cli.inference.network`: options of the run over the input.
      known: `reference` (a path, or None for that of the input), `inputs`, `split`, `language`.
      wish: Options of the decoder.
      number: Of trials.
      seed: Of their draws.

    Returns:
      As `inference.sweep.to_dict`.

    Raises:
      ValueError: There are no references, or no n-gram, or the decoder is not to be had.
    """
    from dinosr_jax.evaluation.wer import references
    from dinosr_jax.inference.recognition import beam_search, sweep
    from dinosr_jax.inference.recognition.emissions import check_recogniser, clock_of, emissions
    from dinosr_jax.inference.recordings import of_shard, open_inputs, parse_shard, refuse
    from dinosr_jax.progress import progress_bar

    check_recogniser(trained)
    start = settings_of({name: value for name, value in wish.items() if name != "decoder"})
    if not start.lm:
        raise ValueError("--lm is missing: there is no weight of a language model to tune")
    check_words(trained.vocabulary, start, say=settings["say"])
    where, split = _reference(known)
    texts = references.read_transcripts(where, split=split, language=known["language"])
    skipped: list[str] = []
    on_bad = refuse if settings["bad"] == "raise" else lambda r, reason: skipped.append(r.name)
    found = open_inputs(known["inputs"], split=known["split"], on_bad=on_bad)
    recordings = of_shard(found, parse_shard(settings["shard"]))
    run = {name: settings[name] for name in ("options", "progress", "say")}
    arrays = {r.id: a for r, a in emissions(trained, recordings, on_bad=on_bad, **run)}
    names = references.match(texts, arrays, path=where)
    spell = trained.vocabulary.normalise
    rows = [(arrays[id_], spell(texts[name].text)) for name, id_ in names.items()]
    if not rows:
        raise ValueError("none of the recordings has a reference")
    settings["say"](f"{len(rows)} utterances, {number} trials")
    task = sweep.SweepTask(trained.vocabulary, clock_of(trained), start, *zip(*rows, strict=True))
    with progress_bar(total=number, unit="trial") as bar:
        how = {"num_workers": settings["options"].num_workers, "progress": bar.update}
        trials = sweep.sweep(task, sweep.draw(number, seed=seed), **how)
    return sweep.to_dict(trials, beam_search.describe(start))


def _reference(known: dict[str, Any]) -> tuple[Path, str]:
    """Where the references are, and of which split."""
    if known["reference"] is not None:
        return Path(known["reference"]), ""
    if not (known["split"] and len(known["inputs"]) == 1):
        raise ValueError("--reference is missing (only one INPUT with --split knows its own)")
    return Path(known["inputs"][0]), known["split"]


def check_words(vocabulary: Any, settings: Any, *, say: Callable[[str], None]) -> None:
    """Says how many words of the lexicon cannot be spelt; ValueError where none can be used."""
    from dinosr_jax.inference.recognition import beam_search

    words = beam_search.lexicon_of(vocabulary, settings)
    if words is not None and words.note():
        say(words.note())


def settings_of(wish: dict[str, Any]) -> Any:
    """Settings of beam search from the options of a command; a file of them comes first."""
    from dinosr_jax.inference.recognition import beam_search

    given = {name: value for name, value in wish.items() if value is not None}
    file = given.pop("settings", None)
    return beam_search.BeamSettings(**((beam_search.read_settings(file) if file else {}) | given))
