"""Several prepared datasets that train together, each with a weight.

A weight counts passes: an epoch uses every utterance of a set of weight 1 once, of weight 2 twice
(with other crops), and of weight 0.5 half of them, which take turns. A set's share of the audio is
its weight times its hours. The batches are those of `BatchPlan` over all that an epoch uses.

Shapes: N utterances, K of a set, P places of an epoch, B rows of a batch.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data.audio import SAMPLE_RATE
from dinosr_jax.data.batches.crops import BatchPlan, Crops, epoch_generator, plan_options
from dinosr_jax.data.batches.lengths import FIELD, HOP
from dinosr_jax.data.batches.pipeline import PipelineError, SpeechData
from dinosr_jax.data.decoder import opened
from dinosr_jax.data.manifest import (
    Manifest,
    ManifestError,
    Records,
    dataset_folder,
    join_manifests,
    load_manifest,
)

_LOG = logging.getLogger(__name__)
_TURNS = 2**64 - 1  # an epoch that is never reached; its random number is the first turn
_GOLDEN = (5**0.5 - 1) / 2  # fractional parts of its multiples fill 0 to 1 evenly


class _Places(NamedTuple):
    """Places of an epoch, each filled by one utterance of a few of about the same length.

    Place p takes turns among `order[first[p]:stop[p]]`. Its position goes from `start[p]` on by
    `width[p]` while a turn goes from 0 to 1: no two places of one set meet.
    """

    order: np.ndarray  # [N] int64
    first: np.ndarray  # [P] int64
    stop: np.ndarray  # [P] int64
    start: np.ndarray  # [P] float64
    width: np.ndarray  # [P] float64

    def utterances(self, places: np.ndarray, *, turn: float) -> np.ndarray:
        """The utterances [B] that fill some places [B]; `turn` is at least 0 and less than 1."""
        position = np.floor(self.start[places] + turn * self.width[places]).astype(np.int64)
        return self.order[np.clip(position, self.first[places], self.stop[places] - 1)]

    def num_samples(self, lengths: np.ndarray) -> np.ndarray:
        """The shortest length [P] of those that fill a place, of lengths [N]: that of the first."""
        return lengths[self.order[self.first]]


def _places_of(lengths: np.ndarray, *, weight: float) -> _Places:
    """The places of one set with utterances of lengths [K]; one at least.

    The whole part of `weight` gives each utterance so many places. For the rest of it, utterances
    next to each other by length take turns. `order` has the utterances twice: in order, by length.
    """
    size, whole = len(lengths), int(weight)
    num_shared = round((weight - whole) * size)
    if not whole and size:
        num_shared = max(num_shared, 1)
    each, shared = np.tile(np.arange(size), whole), np.arange(num_shared)
    bounds = shared * size, (shared + 1) * size
    return _Places(
        order=np.concatenate([np.arange(size), np.argsort(lengths, kind="stable")]),
        first=np.concatenate([each, size + bounds[0] // max(num_shared, 1)]),
        stop=np.concatenate([each + 1, size - -bounds[1] // max(num_shared, 1)]),
        start=np.concatenate([each, size + bounds[0] / max(num_shared, 1)]),
        width=np.repeat([0.0, size / max(num_shared, 1)], [len(each), num_shared]),
    )


class MixturePlan:
    """All batches of a mixture, as a pure function of (lengths, weights, seed, step).

    Attributes:
      num_batches: batches an epoch, the same in every epoch.
      rungs: as of `BatchPlan`.
    """

    def __init__(
        self,
        num_samples: Mapping[str, np.ndarray],
        *,
        weights: Mapping[str, float],
        seed: int,
        **options: float,
    ):
        """Plans the batches; further arguments and errors as of `BatchPlan`.

        Args:
          num_samples: name of a set -> [K] int, lengths of its utterances at 16 kHz.
          weights: name of a set -> passes over it in an epoch.
          seed: as of `BatchPlan`.
          **options: as of `BatchPlan`.
        """
        self._turn = epoch_generator(seed, _TURNS).random()
        places = [_places_of(num_samples[name], weight=weights[name]) for name in weights]
        sizes = [len(num_samples[name]) for name in weights]
        before = np.cumsum([0, *sizes])  # utterances of the sets before
        shifted = [  # `order` has every utterance twice
            _Places(p.order + n, p.first + 2 * n, p.stop + 2 * n, p.start + 2 * n, p.width)
            for p, n in zip(places, before, strict=False)
        ]
        self._places = _Places(*map(np.concatenate, zip(*shifted, strict=True)))
        lengths = np.concatenate([num_samples[name] for name in weights])
        self._plan = BatchPlan(self._places.num_samples(lengths), seed=seed, **options)
        self._ends = np.cumsum(sizes)
        self._about = [
            (name, len(num_samples[name]), num_samples[name].sum() / SAMPLE_RATE / 3600, weight)
            for name, weight in weights.items()
        ]
        self.num_batches, self.rungs = self._plan.num_batches, self._plan.rungs

    def batch(self, step: int) -> Crops:
        """As `BatchPlan.batch`; `indices` count the utterances of all sets, in their order."""
        batch = self._plan.batch(step)
        turn = (self._turn + step // self.num_batches * _GOLDEN) % 1
        return batch._replace(indices=self._places.utterances(batch.indices, turn=turn))

    def shares(self, steps: range) -> dict[str, float]:
        """Share of each set in the audio of some steps, by its name."""
        seconds = np.zeros(len(self._about))
        for step in steps:
            batch = self.batch(step)
            sets = np.searchsorted(self._ends, batch.indices, side="right")
            seconds += np.bincount(sets, minlength=len(seconds)) * batch.num_samples
        shares = seconds / max(seconds.sum(), 1)
        return {name: float(share) for (name, *_), share in zip(self._about, shares, strict=True)}

    def summary(self) -> str:
        """Describes the sets and the batches, in lines to print."""
        total = sum(hours * weight for _, _, hours, weight in self._about)
        lines = [f"mixture of {len(self._about)} sets; an epoch has {total:.2f} h:"]
        lines += [
            f"  {name}: {number} utterances, {hours:.2f} h, weight {weight:g}: "
            f"{hours * weight / total:.1%} of the audio"
            for name, number, hours, weight in self._about
        ]
        return "\n".join([*lines, self._plan.summary()])


class _MixedRecords:
    """The records of several sets one after the other, with the ids that the mixture gives."""

    def __init__(self, records: Sequence[tuple[str, Records]]):
        self._records = records
        self._starts = np.cumsum([0, *(len(some) for _, some in records)])

    def __getitem__(self, position: int) -> tuple[bytes, str]:
        """The bytes of the audio file and the id of one utterance."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        name, records = self._records[number]
        content, id_ = records[position - self._starts[number]]
        return content, f"{name}/{id_}"


def open_mixture(
    data_config: Any, *, split: str, seed: int, field: int = FIELD, hop: int = HOP
) -> SpeechData:
    """Opens a split of every set of `data_config.mixture`, for training; as `open_split`.

    Raises:
      ManifestError: a dataset or its split is not there, it is not of 16 kHz, or the same is named
        twice.
      PipelineError: too few utterances are long enough to fill a batch.
    """
    wholes, records = _open_sets(data_config, split=split)
    manifests = {name: some.at_least(data_config.min_seconds) for name, some in wholes.items()}
    try:
        plan = MixturePlan(
            {name: manifest.num_samples for name, manifest in manifests.items()},
            weights=dict(data_config.mixture),
            seed=seed,
            field=field,
            hop=hop,
            **plan_options(data_config),
        )
    except ValueError as error:
        counts = ", ".join(f"{len(some)} of {name!r}" for name, some in manifests.items())
        raise PipelineError(
            f"config.data.mixture, split {split!r}: {counts} are at least min_seconds = "
            f"{data_config.min_seconds:g}: {error}"
        ) from None
    return SpeechData(
        _joined(manifests, sizes=[len(some) for some in wholes.values()]),
        records=_MixedRecords(records),
        plan=plan,
        left_out=sum(map(len, wholes.values())) - sum(map(len, manifests.values())),
        data_config=data_config,
    )


def _open_sets(
    data_config: Any, *, split: str
) -> tuple[dict[str, Manifest], list[tuple[str, Records]]]:
    """A split of every set, by its name: what is known of it, and its records."""
    manifests, records, names = {}, [], {}
    where = {"dataset": data_config.dataset, "split": split}
    for name, _ in data_config.mixture:
        folder = Path(data_config.data_dir).expanduser() / name
        if other := names.get(folder.resolve()):
            raise ManifestError(
                f"config.data.mixture: {other!r} and {name!r} are both {folder.resolve()}. Name it "
                "once; a weight of 2 uses it twice an epoch."
            )
        names[folder.resolve()] = name
        try:
            manifests[name], some = load_manifest(folder, **where), Records(folder, **where)
        except ManifestError as error:
            raise ManifestError(f"config.data.mixture, {name!r}: {error}") from None
        _check_rate(name, folder, dataset=data_config.dataset, records=some)
        records.append((name, some))
    return manifests, records


def _joined(manifests: Mapping[str, Manifest], *, sizes: Sequence[int]) -> Manifest:
    """One manifest of all sets; `sizes` are those of their records."""
    starts = np.cumsum([0, *sizes])
    return join_manifests(
        [
            Manifest(
                ids=np.array([f"{name}/{id_}" for id_ in manifest.ids], object),
                num_samples=manifest.num_samples,
                speakers=np.array([f"{name}/{who}" for who in manifest.speakers], object),
                languages=manifest.languages,
                texts=manifest.texts,
                positions=manifest.positions + start,
            )
            for (name, manifest), start in zip(manifests.items(), starts, strict=False)
        ]
    )


def _check_rate(name: str, folder: Path, *, dataset: str, records: Records) -> None:
    """Refuses a set whose description, or whose first recording, is not of 16 kHz."""
    described = json.loads((dataset_folder(folder, dataset=dataset) / "features.json").read_text())
    speech = described["featuresDict"]["features"]["speech"].get("audio", {})
    rates = {int(speech.get("sampleRate", SAMPLE_RATE))}
    try:
        with opened(records[0][0], name=name) as sound:
            rates.add(sound.sample_rate)
    except Exception as error:  # damaged; array_record, protobuf and libsndfile raise many kinds
        _LOG.warning("%s: the first record of %s is damaged: %s", name, folder, error)
    if others := rates - {SAMPLE_RATE}:
        raise ManifestError(
            f"config.data.mixture, {name!r}: {folder} has {min(others)} samples a second, expected "
            f"{SAMPLE_RATE}. Prepare it again from its recordings, which resamples them: "
            f"python -m dinosr_jax prepare --source=FOLDER_OF_AUDIO --data_dir={folder}"
        )
