"""A trained network in the hands of its user: `dinosr_jax.load(PATH)`, and features from Python.

Shapes: S samples, C channels, T frames, D model, L layers.
"""

import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from dinosr_jax import files
from dinosr_jax.data import audio
from dinosr_jax.data.vocabulary import Vocabulary
from dinosr_jax.errors import UserError
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.recordings import Recording, refuse
from dinosr_jax.inference.selection import Network, Selection, Tensor, parse_layers
from dinosr_jax.interop import runs
from dinosr_jax.interop.formats import InteropError
from dinosr_jax.model.feature_encoder import num_frames
from dinosr_jax.objective.codebook import Codebook
from dinosr_jax.training.checkpoint import CheckpointError

_LOG = logging.getLogger(__name__)


class Pretrained:
    """A trained network: configuration, parameters of student and teacher, codebooks, step.

    A recogniser has neither teacher nor codebooks ({} and None), and a `vocabulary`.

    `fresh` heads and codebooks are those of a student that came without any.

    `path` and `source` are its origin: 'run', or the format of another project; `notes` have what
    was assumed or left out there.
    """

    def __init__(
        self,
        config: Any,
        *,
        params: Any,
        teacher_params: Any,
        codebook: Codebook | None,
        step: int = 0,
        path: str = "",
        source: str = "run",
        notes: Sequence[str] = (),
        fresh: bool = False,
    ):
        self.config = config
        self.params, self.teacher_params, self.codebook = params, teacher_params, codebook
        self.step, self.path, self.source, self.notes = step, path, source, tuple(notes)
        self.fresh = fresh
        self._resampled: set[int] = set()
        self._fingerprints: dict[str, str] = {}

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The symbols of a recogniser; None of a network that was not fine-tuned."""
        if self.config.task != "ctc":
            return None
        return Vocabulary(tuple(self.config.ctc.symbols))

    def full_params(self, network: Network) -> Any:
        """Parameters of the student, or of the teacher with what it shares with the student.

        Raises:
          UserError: A recogniser has no teacher.
        """
        if network == "teacher" and not self.teacher_params:
            raise UserError(f"{self.path}: a fine-tuned network has no teacher; expected student")
        return self.params if network == "student" else {**self.params, **self.teacher_params}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the parameters of student, teacher and codebooks."""
        return _digest((self.params, self.teacher_params, tuple(self.codebook or ())))

    def fingerprint_of(self, network: Network) -> str:
        """Digest of what the features of student or teacher depend on, without heads."""
        if network not in self._fingerprints:
            params = self.full_params(network)
            parts = {name: params[name] for name in batched.PARTS if name in params}
            self._fingerprints[network] = _digest(parts)
        return self._fingerprints[network]

    def num_frames(self, num_samples: int) -> int:
        """Frames of an utterance of so many samples at 16 kHz."""
        return num_frames(num_samples, self.config.model.conv_layers)

    def extract(
        self,
        waveforms: np.ndarray | Sequence[np.ndarray],
        *,
        sample_rate: int = audio.SAMPLE_RATE,
        layer: int | Sequence[int] | Literal["all"],
        tensor: Tensor = "block",
        model: Network = "student",
        options: batched.Options | None = None,
    ) -> Any:
        """Features of one utterance, or of many.

        Args:
          waveforms: [S], or [S, C] with fewer channels than samples (mixed down), of any level:
            floating point, or integers (int16, int32, uint8), which are scaled; normalised here.
            Or a list of them, which is batched inside.
          sample_rate: Of all waveforms, in Hz; others than 16,000 are resampled.
          layer: 1 to L; 0 is what the first layer reads; or several, or 'all' (1 to L).
          tensor: 'block' is the layer's output (Hugging Face's hidden state), 'ffn' the output of
            its feed-forward block before the residual (what codebooks cluster).
          model: Student or teacher.
          options: Batches, chunks and threads; None for the defaults.

        Returns:
          [T, D] float32, one frame every 20 ms; {layer: [T, D]} where `layer` is several; a list
          of them, in the order of the waveforms, where a list is given.

        Raises:
          UserError: No such layer, tensor or network.
          AudioError: A waveform cannot be used; its place in the list is named.
        """
        recordings, several = self._recordings(waveforms, sample_rate)
        layers = parse_layers(layer, num_layers=self.config.model.num_layers, tensor=tensor)
        select = Selection(layers, tensor)
        forward = batched.Forward(self, select, depth=max(layers), network=model, options=options)
        features = {}
        for part in batched.whole(batched.run(forward, recordings, on_bad=refuse)):
            arrays = dict(zip(layers, part.arrays, strict=True))
            one = isinstance(layer, (int, np.integer))
            features[part.recording.id] = arrays[layers[0]] if one else arrays
        ordered = [features[recording.id] for recording in recordings]
        return ordered if several else ordered[0]

    def units(
        self,
        waveforms: np.ndarray | Sequence[np.ndarray],
        *,
        sample_rate: int = audio.SAMPLE_RATE,
        layer: int | Sequence[int] | Literal["all"],
        source: Literal["codebook", "head", "kmeans"] = "codebook",
        kmeans: Any = None,
        tensor: Tensor | None = None,
        model: Network | None = None,
        options: batched.Options | None = None,
    ) -> Any:
        """Discrete units of one utterance, or of many.

        Args:
          waveforms: As `extract` takes them.
          sample_rate: Of all waveforms, in Hz.
          layer: One, several, or 'all' that have units.
          source: 'codebook', the nearest codeword of the teacher's codebook; 'head', the most
            probable code of the student's head; 'kmeans', the nearest centroid.
          kmeans: File of `units --fit`, for 'kmeans'.
          tensor: What k-means was fitted on; None takes it from the file.
          model: The same.
          options: Batches, chunks and threads; None for the defaults.

        Returns:
          [T] int32, one unit every 20 ms; {layer: [T]} where `layer` is several; a list of them,
          in the order of the waveforms, where a list is given.

        Raises:
          UserError: The layer has no units, or k-means is of other features.
          AudioError: A waveform cannot be used; its place in the list is named.
        """
        from dinosr_jax.inference.units import quantise

        which = {"layer": layer, "source": source, "kmeans_file": kmeans}
        plan = quantise.plan(self, **which, tensor=tensor, network=model)
        recordings, several = self._recordings(waveforms, sample_rate)
        units = quantise.of_waveforms(plan, recordings, options=options)
        if isinstance(layer, (int, np.integer)):
            units = [codes[int(layer)] for codes in units]
        return units if several else units[0]

    def transcribe(
        self,
        waveforms: np.ndarray | Sequence[np.ndarray],
        *,
        sample_rate: int = audio.SAMPLE_RATE,
        decoder: Any = None,
        options: batched.Options | None = None,
    ) -> Any:
        """Text of one utterance, or of many.

        Args:
          waveforms: As `extract` takes them.
          sample_rate: Of all waveforms, in Hz.
          decoder: Of `decoding` or `beam_search`; None is greedy.
          options: Batches, chunks and threads; None for the defaults.

        Returns:
          Text; a list of texts, in the order of the waveforms, where a list is given.

        Raises:
          UserError: The network was not fine-tuned.
          AudioError: A waveform cannot be used; its place in the list is named.
        """
        from dinosr_jax.inference.recognition import decoding, emissions

        emissions.check_recogniser(self)
        recordings, several = self._recordings(waveforms, sample_rate)
        decoder = decoder or decoding.greedy(self.vocabulary, emissions.clock_of(self))
        texts = emissions.texts_of(self, recordings, decoder, options=options)
        return texts if several else texts[0]

    def _recordings(self, waveforms: Any, sample_rate: int) -> tuple[list[Recording], bool]:
        """Waveforms as recordings, and whether they are several."""
        several = isinstance(waveforms, (list, tuple))
        if several and waveforms and np.ndim(waveforms[0]) == 0:
            waveforms, several = np.asarray(waveforms), False
        recordings = []
        for i, waveform in enumerate(waveforms if several else [waveforms]):
            name = f"waveform {i}" if several else "the waveform"
            wave = self._prepare(waveform, sample_rate, name)
            recordings.append(Recording(str(i), name, wave, len(wave)))
        return recordings, several

    def _prepare(self, waveform: Any, sample_rate: int, name: str) -> np.ndarray:
        """A waveform of any type as [S] float32 at 16 kHz."""
        wave = _as_mono(waveform, name=name)
        if sample_rate != audio.SAMPLE_RATE:
            if not (isinstance(sample_rate, (int, np.integer)) and sample_rate > 0):
                raise audio.AudioError(
                    f"sample_rate: found {sample_rate!r}, expected whole Hz, such as 16000"
                )
            audio.check(wave, name=name)
            if sample_rate not in self._resampled:
                _LOG.warning("resampled from %d to 16,000 Hz", sample_rate)
                self._resampled.add(sample_rate)
            wave = audio.to_16khz(wave, sample_rate=int(sample_rate))
        return wave


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:16]


def _as_mono(waveform: Any, *, name: str) -> np.ndarray:
    """[S] float32 of [S] or [S, C], in floating point or integers (scaled to full scale 1)."""
    array = np.asarray(waveform)
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise audio.AudioError(
            f"{name}: found {array.dtype}{list(array.shape)}, expected numbers [samples] or "
            "[samples, channels]"
        )
    if array.ndim == 2 and array.shape[1] > min(8, array.shape[0]):
        raise audio.AudioError(
            f"{name}: found shape {list(array.shape)}, expected [samples] or [samples, channels] "
            "with 8 channels at most; transpose it (waveform.T), or give a list for a batch"
        )
    if array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        middle = 0 if array.dtype.kind == "i" else (info.max + 1) // 2
        array = (array.astype(np.float64) - middle) / (info.max + 1 - middle)
    mix = audio.Mix()
    wave = mix.down(array.astype(np.float32))
    mix.check(name=name)
    return wave


def load(path: str | Path, *, heads: int | None = None) -> Pretrained:
    """Reads a trained network.

    Args:
      path: A run (the --workdir of main.py; its last checkpoint, of a recogniser its best), one
        step of it (RUN/checkpoints/STEP, RUN/best/STEP), an exported folder, or a checkpoint of
        fairseq, spidr or Hugging Face.
      heads: Attention heads of another project's checkpoint that does not have their number
        (spidr's); None for width / 64, as published.

    Returns:
      The network, on the first device.

    Raises:
      CheckpointError: There is nothing at the path, or nothing that can be read.
      ValueError: It is a URL.
    """
    files.refuse_url("the checkpoint", path)
    path = Path(path).expanduser()
    expected = (
        "expected a run (the --workdir of main.py, with config.json and checkpoints/), a step of "
        "one (RUN/checkpoints/STEP), an exported folder, or a checkpoint of fairseq, spidr or "
        "Hugging Face"
    )
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; {expected}")
    try:
        read = runs.read(path, heads=heads)
    except InteropError as error:
        raise CheckpointError(f"{error}\n{path} is not a run either: {expected}") from None
    return Pretrained(
        read.config,
        params=read.state.params,
        teacher_params=read.state.teacher_params,
        codebook=read.state.codebook,
        step=int(read.step),
        path=str(path),
        source=read.source,
        notes=read.notes or read.data.get("assumed", ()),
        fresh=bool(read.data.get("fresh")),
    )
