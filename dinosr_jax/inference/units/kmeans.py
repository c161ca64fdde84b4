"""K-means on features: fitted on a sample of frames, kept in a file that names the features.

The file is an .npz of plain arrays: `convention` is a JSON text, `centroids_05` the [K, D] float32
of layer 5. Nothing is ever unpickled.

Shapes: T frames, D model, K clusters.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.errors import UserError
from dinosr_jax.inference import outputs
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.recordings import Recording, printable, refuse
from dinosr_jax.inference.selection import Network, Selection, Tensor, parse_layers
from dinosr_jax.model.feature_encoder import receptive_field

MAX_FRAMES = 500_000
_FORMAT = "dinosr_jax k-means"
# what must be the same where the centroids are used
_CONVENTION = ("tensor", "model", "fingerprint", "width", "sample_rate", "frame_rate")
# fairseq examples/hubert/simple_kmeans/learn_kmeans.py, as published with HuBERT
_SETTINGS = {
    "init": "k-means++",
    "max_iter": 100,
    "batch_size": 10_000,
    "tol": 0.0,
    "max_no_improvement": 100,
    "n_init": 20,
    "reassignment_ratio": 0.0,
}


class KMeansError(UserError):
    """A k-means file cannot be used."""


class KMeans(NamedTuple):
    """Centroids of each layer, {layer: [K, D] float32}, and the features that they are of."""

    centroids: Mapping[int, np.ndarray]
    convention: Mapping[str, Any]

    def check(self, model: Any, *, layers: Sequence[int], tensor: str, network: str) -> None:
        """Raises KMeansError where these centroids are of other features than those named."""
        expected = convention_of(model, tensor=tensor, network=network)
        for name in _CONVENTION:
            if self.convention.get(name) != expected[name]:
                known = " (another checkpoint)" if name == "fingerprint" else ""
                raise KMeansError(
                    f"{name}: the k-means file is for {self.convention.get(name)!r}, found "
                    f"{expected[name]!r}{known}; use what it was fitted on, or --fit another one"
                )
        for layer in layers:
            if layer not in self.centroids:
                raise KMeansError(
                    f"layer: the k-means file is for {sorted(self.centroids)}, found {layer}; use "
                    "one of these, or --fit another one"
                )


def convention_of(model: Any, *, tensor: str, network: str) -> dict[str, Any]:
    """The fields of a k-means file that describe the features."""
    hop = receptive_field(model.config.model.conv_layers)[1]
    return {
        "tensor": tensor,
        "model": network,
        "width": int(model.config.model.width),
        "fingerprint": model.fingerprint_of(network),
        "step": int(model.step),
        "checkpoint": printable(str(model.path)),
        "sample_rate": audio.SAMPLE_RATE,
        "frame_rate": audio.SAMPLE_RATE / hop,
        "normalisation": "none",
    }


def fit(
    model: Any,
    recordings: Sequence[Recording],
    *,
    layer: int | str | Sequence[int],
    num_clusters: int,
    tensor: Tensor = "block",
    network: Network = "student",
    seed: int = 0,
    max_frames: int = MAX_FRAMES,
    options: batched.Options | None = None,
    **run: Any,
) -> KMeans:
    """Clusters features with scikit-learn's MiniBatchKMeans and the settings of HuBERT.

    Every layer is clustered apart; `layer`, `tensor` and `network` are as of `Selection`, `run` has
    `on_bad`, `say` and `progress` of `batched.run`. Of a larger corpus than `max_frames` a uniform
    sample is used; `seed` is that of the sample and of k-means.

    Raises:
      UserError: There are fewer frames than clusters; or no such layer, tensor or network.
    """
    if num_clusters < 1 or max_frames < num_clusters:
        raise KMeansError(
            f"num_clusters {num_clusters}, max_frames {max_frames}: expected at least 1, and as "
            "many frames as clusters"
        )
    layers = parse_layers(layer, num_layers=model.config.model.num_layers, tensor=tensor)
    forward = batched.Forward(
        model, Selection(layers, tensor), depth=max(layers), network=network, options=options
    )
    sample = FrameSample(max_frames, num_layers=len(layers), width=model.config.model.width)
    total = 0
    for part in batched.run(forward, recordings, **{"on_bad": refuse} | run):
        frames = len(part.arrays[0])
        keys = _keys(seed, part.recording.id, part.num_frames)[part.first : part.first + frames]
        sample.add(keys, part.arrays)
        total += frames
    if "say" in run:
        run["say"](f"k-means: fitting on {min(total, max_frames):,} of {total:,} frames")
    if total < num_clusters:
        raise KMeansError(f"{total} frames cannot make {num_clusters} clusters; give more audio")
    how = {"num_clusters": num_clusters, "seed": seed}
    centroids = {number: cluster(sample.sorted(i), **how) for i, number in enumerate(layers)}
    counts = {"num_clusters": num_clusters, "num_frames": min(total, max_frames)}
    counts |= {"of_frames": total, "seed": seed}
    convention = convention_of(model, tensor=tensor, network=network)
    return KMeans(centroids, {"layers": list(layers), **convention, **counts})


def cluster(frames: np.ndarray, *, num_clusters: int, seed: int) -> np.ndarray:
    """Centroids [K, D] float32 of frames [n, D], by MiniBatchKMeans with the settings of HuBERT."""
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(num_clusters, random_state=seed, compute_labels=False, **_SETTINGS)
    return kmeans.fit(frames).cluster_centers_.astype(np.float32)


def nearest(centroids: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The nearest of centroids [K, D] to each of frames [T, D]: [T] int32."""
    distances = np.square(centroids).sum(axis=1)[None] - 2 * frames @ centroids.T
    return distances.argmin(axis=1).astype(np.int32)


def _keys(seed: int, id_: str, num_frames: int) -> np.ndarray:
    """A random number for each frame of a recording: a function of seed and id alone."""
    text = f"{seed}\0{id_}".encode("utf-8", "surrogateescape")
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()))
    return generator.random(num_frames)


class FrameSample:
    """The frames with the smallest keys among all that are added: a uniform sample.

    It does not depend on the order, and holds 5 D bytes a layer and frame of `size` in memory, 4 D
    more while one layer is clustered.
    """

    def __init__(self, size: int, *, num_layers: int, width: int):
        self._size, self._used, self._limit = size, 0, np.inf
        room = size + max(size // 4, 8192)
        self._keys = np.empty(room)
        self._rows = [np.empty((room, width), np.float32) for _ in range(num_layers)]

    def add(self, keys: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
        """Adds frames: keys [T] and, for each layer, [T, D]."""
        left = np.flatnonzero(keys < self._limit)
        while len(left):
            room = len(self._keys) - self._used
            now, left = left[:room], left[room:]
            where = slice(self._used, self._used + len(now))
            self._keys[where] = keys[now]
            for rows, array in zip(self._rows, arrays, strict=True):
                rows[where] = array[now]
            self._used += len(now)
            if self._used == len(self._keys):
                self._prune()

    def _prune(self) -> None:
        """Keeps the smallest keys, in place: those far back move to where others leave."""
        kept = np.zeros(self._used, bool)
        kept[np.argpartition(self._keys[: self._used], self._size - 1)[: self._size]] = True
        left = np.flatnonzero(~kept[: self._size])
        moved = self._size + np.flatnonzero(kept[self._size :])
        for array in (self._keys, *self._rows):
            array[left] = array[moved]
        self._used, self._limit = self._size, self._keys[: self._size].max()

    def sorted(self, i: int) -> np.ndarray:
        """The sample of one layer [n, D], in the order of the keys."""
        order = np.argsort(self._keys[: self._used], kind="stable")[: self._size]
        return self._rows[i][order]


def save(path: Path, fitted: KMeans) -> None:
    """Writes centroids and convention to an .npz, whole or not at all; raises OutputError."""
    arrays = {f"centroids_{layer:02}": array for layer, array in fitted.centroids.items()}
    text = json.dumps({"format": _FORMAT, "version": 1, **fitted.convention})
    with outputs.replacing(path) as file:
        np.savez(file, convention=np.asarray(text), **arrays)


def load(path: str | Path) -> KMeans:
    """Reads what `save` wrote; raises KMeansError for any other file."""
    path, name = Path(path), printable(str(path))
    try:
        if not zipfile.is_zipfile(path):
            raise KMeansError(f"{name}: {_kind(path)}, expected the .npz that --fit writes")
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > path.stat().st_size:
            raise KMeansError(f"{name}: compressed, expected the .npz that --fit writes")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        convention = json.loads(str(arrays.pop("convention")))
    except FileNotFoundError:
        raise KMeansError(f"{name}: no such k-means file; --fit makes one") from None
    except KMeansError:
        raise
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError,
            NotImplementedError, RecursionError) as error:  # fmt: skip
        raise KMeansError(
            f"{name} is no k-means file of --fit, or damaged ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(convention, dict) or convention.pop("format", None) != _FORMAT:
        raise KMeansError(f"{name}: convention: expected that of a {_FORMAT} file")
    if convention.pop("version", None) != 1:
        raise KMeansError(f"{name}: version: expected 1; the file is from a later program")
    return KMeans(_centroids(name, arrays, convention), convention)


def _kind(path: Path) -> str:
    """What a file that is no .npz seems to be."""
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80" or start in (b"x\x9c", b"x\x01", b"x^", b"x\xda"):
        return "a pickle (joblib), which is not read because it could run anything"
    return "not an .npz"


def _centroids(
    name: str, arrays: dict[str, np.ndarray], convention: dict[str, Any]
) -> dict[int, np.ndarray]:
    """The checked centroids."""
    layers, centroids = convention.get("layers"), {}
    if not isinstance(layers, list) or not layers or not all(type(i) is int for i in layers):
        raise KMeansError(f"{name}: layers: found {layers!r}, expected numbers")
    shape = (convention.get("num_clusters"), convention.get("width"))
    for layer in layers:
        array = arrays.pop(f"centroids_{layer:02}", None)
        if array is None or array.dtype != np.float32 or array.shape != shape:
            what = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise KMeansError(
                f"{name}: centroids_{layer:02}: found {what}, expected float32{list(shape)}"
            )
        if not array.size or not np.isfinite(array).all():
            raise KMeansError(f"{name}: centroids_{layer:02}: expected finite numbers")
        centroids[layer] = array
    if arrays:
        raise KMeansError(f"{name}: found {sorted(arrays)}, which no k-means file has")
    return centroids
