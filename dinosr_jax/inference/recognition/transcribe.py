"""Text of many recordings: emissions computed in batches, decoded meanwhile, written as JSON lines.

Finished lines are kept in a file beside the output until all are there; a run that was stopped goes
on with the others. It goes on where a batch ended, so that the rest is batched, and rounded, as if
it had never stopped: the output is the same to the byte.

Shapes: T frames, V symbols.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.inference import outputs
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.recognition import decode_pool, emissions
from dinosr_jax.inference.recognition.decoding import Decoder, Hypothesis
from dinosr_jax.inference.recognition.transcript_file import TranscriptFile
from dinosr_jax.inference.recordings import Chosen, Recording, parse_shard, printable
from dinosr_jax.inference.units.unit_file import Key, names_of, paths_of


class Decoding(NamedTuple):
    """What makes text of emissions: gives a decoder, settings of it as plain values, who runs it.

    A run that goes on must have the same settings. `make` and `by` are as of
    `decode_pool.decode_all`.
    """

    make: Callable[[], Decoder]
    settings: Mapping[str, Any]
    by: decode_pool.By = "threads"


def transcribe_files(
    model: Any,
    inputs: Sequence[str | Path],
    *,
    output: Path,
    decoding: Decoding,
    key: Key = "file",
    emissions_folder: Path | None = None,
    split: str = "",
    shard: str = "0/1",
    bad: Literal["raise", "skip"] = "raise",
    options: batched.Options | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> outputs.Summary:
    """Writes transcripts of recordings: a JSON object a line, in the order of the input.

    `inputs`, `split`, `shard` and `bad` are as of `Chosen`, `options`, `progress` and `say` as of
    `batched.run`; `key` is the field of the utterance's name. OUTPUT's stem with .about.json beside
    `output` describes how the text was made. Emissions [T, V] are kept in `emissions_folder`, as
    .npy.

    Raises:
      UserError: The network is no recogniser.
      AudioError: A recording cannot be used, and is not to be skipped; or two have one name.
      OutputError: It cannot be written, or is of another network, input or other settings.
      ChildProcessError: A process that decodes was killed.
    """
    emissions.check_recogniser(model)
    options = options or batched.Options()
    (output,) = paths_of(output, layers=(0,), shard=parse_shard(shard))
    chosen = Chosen(inputs, split=split, shard=shard, bad=bad)
    names = names_of(chosen.recordings, key=key)
    about = {"inputs": [printable(str(Path(path).absolute())) for path in inputs]}
    about |= {"split": split, "key": key, "chunk_seconds": options.chunk_seconds}
    about |= {"overlap_seconds": options.overlap_seconds, **decoding.settings}
    with TranscriptFile(output, key=key, about=_of_model(model) | about) as file:
        arrays = _emission_paths(emissions_folder, model, chosen.recordings)
        is_kept = lambda id_: emissions_folder is None or outputs.is_whole(arrays[id_])
        is_done = lambda r: names[r.id] in file.lines and is_kept(r.id)
        todo = [recording for recording in chosen.recordings if not is_done(recording)]
        before = len(chosen.recordings) - len(todo)
        if before:
            say(f"{before} of {len(chosen.recordings)} are there already")
        run = {"on_bad": chosen.on_bad, "options": options, "progress": progress, "say": say}
        for part, hypothesis in _decoded(model, todo, decoding, **run):
            if emissions_folder is not None:
                _keep(part.arrays, arrays[part.recording.id])
            file.add(names[part.recording.id], hypothesis, commit=part.ends_batch)
        if todo and emissions_folder is not None:
            os.sync()  # once for all files
        done = [names[r.id] for r in chosen.recordings if names[r.id] in file.lines]
        file.finish(done)
    return outputs.summary(len(done) - before, before, chosen, folder=output.parent)


def _decoded(
    model: Any,
    recordings: Sequence[Recording],
    decoding: Decoding,
    *,
    options: batched.Options,
    **run: Callable,
) -> Iterator[tuple[batched.Part, Hypothesis]]:
    """Emissions of recordings, and their text."""
    if not recordings:  # no decoder is made for nothing
        return
    parts = emissions.parts(model, recordings, options=options, **run)
    workers = {"by": decoding.by, "num_workers": options.num_workers}
    pairs = ((part, part.arrays) for part in parts)
    for part, _, hypothesis in decode_pool.decode_all(pairs, decoding.make, **workers):
        yield part, hypothesis


def _of_model(model: Any) -> dict[str, Any]:
    return {"checkpoint": model.path, "fingerprint": model.fingerprint, "step": model.step}


def _emission_paths(
    folder: Path | None, model: Any, recordings: Sequence[Recording]
) -> dict[str, Path]:
    """Where arrays are kept, by id; refuses a folder with those of another network."""
    if folder is None:
        return {}
    paths = {r.id: outputs.inside(folder, f"{r.id}.npy") for r in recordings}
    field, hop = emissions.clock_of(model)
    about = _of_model(model) | {
        "values": "natural logarithms of probabilities [frames, symbols], float32",
        "symbols": list(model.vocabulary.symbols),
        **{"sample_rate": audio.SAMPLE_RATE, "hop_samples": hop, "receptive_field_samples": field},
    }
    outputs.claim(folder, about, name="emissions.json", what="emissions")
    return paths


def _keep(array: np.ndarray, path: Path) -> None:
    file = outputs.ArrayFile(path, shape=array.shape, dtype=np.dtype(np.float32))
    file.write(array)
    file.close()
