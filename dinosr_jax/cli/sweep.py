"""What `sweep` does: emissions once, references, trials."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dinosr_jax.errors import UserError


def tune(
    trained: Any,
    inputs: tuple[Path, ...],
    settings: dict[str, Any],
    decoder: dict[str, Any],
    *,
    reference: Path | None,
    language: str,
    trials: int,
    seed: int,
) -> dict[str, Any]:
    """Tries weights of beam search: `settings` of `inference.network`, options of the decoder.

    Without a `reference` the input's own transcripts are. Returns `inference.sweep.to_dict`.
    """
    from dinosr_jax.evaluation.wer import references
    from dinosr_jax.inference.recognition import beam_search, sweep
    from dinosr_jax.inference.recognition.emissions import check_recogniser, clock_of, emissions
    from dinosr_jax.inference.recordings import of_shard, open_inputs, parse_shard, refuse
    from dinosr_jax.progress import progress_bar

    check_recogniser(trained)
    say, split = settings["say"], settings["split"]
    start = beam_settings(decoder | {"decoder": None}, trained.vocabulary, say=say)
    if not start.lm:
        raise UserError("--lm is missing: there is no weight of a language model to tune")
    if reference is None and not (split and len(inputs) == 1):
        raise UserError("--reference is missing (only one INPUT with --split knows its own)")
    where = reference or inputs[0]
    texts = references.read_transcripts(where, split="" if reference else split, language=language)
    on_bad = refuse if settings["bad"] == "raise" else lambda recording, reason: None
    recordings = of_shard(
        open_inputs(inputs, split=split, on_bad=on_bad), parse_shard(settings["shard"])
    )
    run = {name: settings[name] for name in ("options", "progress", "say")}
    arrays = {r.id: a for r, a in emissions(trained, recordings, on_bad=on_bad, **run)}
    names = references.match(texts, arrays, path=where)
    spell = trained.vocabulary.normalise
    rows = [(arrays[id_], spell(texts[name].text)) for name, id_ in names.items()]
    if not rows:
        raise UserError("none of the recordings has a reference")
    say(f"{len(rows)} utterances, {trials} trials")
    task = sweep.SweepTask(trained.vocabulary, clock_of(trained), start, *zip(*rows, strict=True))
    with progress_bar(total=trials, unit="trial") as bar:
        how = {"num_workers": settings["options"].num_workers, "progress": bar.update}
        tried = sweep.sweep(task, sweep.draw(trials, seed=seed), **how)
    return sweep.to_dict(tried, beam_search.describe(start))


def beam_settings(decoder: dict[str, Any], vocabulary: Any, *, say: Callable[[str], None]) -> Any:
    """Settings of beam search: of the file `--settings`, and over them the options given.

    Says how many words of the lexicon cannot be spelt; ValueError where none can be used.
    """
    from dinosr_jax.inference.recognition import beam_search

    given = {name: value for name, value in decoder.items() if value is not None}
    file = given.pop("settings", None)
    settings = beam_search.BeamSettings(
        **((beam_search.read_settings(file) if file else {}) | given)
    )
    words = beam_search.lexicon_of(vocabulary, settings)
    if words is not None and words.note():
        say(words.note())
    return settings
