"""K-means on features: the sample, the fit, and the file, which never runs anything."""

import io
import json
import pickle
import zipfile

import jax
import numpy as np
import pytest

from dinosr_jax.inference import outputs
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording
from dinosr_jax.inference.units import kmeans
from tests.tiny_runs import tiny_model

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def model(compile_quickly):
    return tiny_model(step=3)


@pytest.fixture(scope="module")
def recordings():
    rng = np.random.default_rng(0)
    waves = [rng.standard_normal(n).astype(np.float32) for n in (9_000, 16_000, 12_000)]
    return [Recording(f"r{i}", f"r{i}", wave, len(wave)) for i, wave in enumerate(waves)]


@pytest.fixture(scope="module")
def fitted(model, recordings):
    return kmeans.fit(model, recordings, layer=[1, 3], num_clusters=5, tensor="ffn", seed=1)


def test_the_sample_is_the_frames_with_the_smallest_keys():
    rng = np.random.default_rng(0)
    keys = rng.random(60_000)
    rows = np.stack([keys, np.arange(60_000)], axis=1).astype(np.float32)
    expected = np.argsort(keys)[:1000]
    for step in (60_000, 1, 977):
        sample = kmeans.FrameSample(1000, num_layers=2, width=2)
        some = 20_000 if step == 1 else 60_000
        for i in range(0, some, step):
            sample.add(keys[i : i + step], [rows[i : i + step], -rows[i : i + step]])
        wanted = np.argsort(keys[:some])[:1000] if step == 1 else expected
        np.testing.assert_array_equal(sample.sorted(0), rows[wanted])
        np.testing.assert_array_equal(sample.sorted(1), -rows[wanted])
        assert len(sample._keys) == 1000 + 8192  # nothing beyond it is ever held


def test_fit_clusters_the_features_that_it_names(model, recordings, fitted):
    """The fit is that of scikit-learn on the same frames, and knows what it is of."""
    from sklearn.cluster import MiniBatchKMeans

    assert set(fitted.centroids) == {1, 3}
    said = {"tensor": "ffn", "model": "student", "width": 32, "step": 3, "layers": [1, 3]}
    said |= {"num_clusters": 5, "seed": 1, "sample_rate": 16_000, "frame_rate": 50.0}
    assert said.items() <= fitted.convention.items()
    waves = [recording.source for recording in recordings]
    features = np.concatenate(model.extract(waves, layer=3, tensor="ffn"))
    assert fitted.convention["num_frames"] == fitted.convention["of_frames"] == len(features)
    inertia = lambda c: np.square(features[:, None] - c[None]).sum(-1).min(1).sum()
    other = MiniBatchKMeans(5, n_init=20, max_no_improvement=100, tol=0, random_state=4).fit(
        features
    )
    assert inertia(fitted.centroids[3]) <= 1.05 * inertia(other.cluster_centers_)


def test_the_fit_depends_on_the_seed_and_not_on_the_order(model, recordings, fitted):
    what = {"layer": [1, 3], "num_clusters": 5, "tensor": "ffn"}
    again = kmeans.fit(model, recordings[::-1], seed=1, **what)
    np.testing.assert_allclose(again.centroids[3], fitted.centroids[3], atol=1e-4)
    fewer = [kmeans.fit(model, recordings, seed=s, max_frames=40, **what) for s in (1, 1, 2)]
    assert fewer[0].convention["num_frames"] == 40
    np.testing.assert_array_equal(fewer[0].centroids[1], fewer[1].centroids[1])
    assert np.abs(fewer[0].centroids[1] - fewer[2].centroids[1]).max() > 1e-3


def test_too_few_frames(model, recordings):
    with pytest.raises(kmeans.KMeansError, match="cannot make 500 clusters"):
        kmeans.fit(model, recordings, layer=[1, 3], num_clusters=500, tensor="ffn")
    with pytest.raises(kmeans.KMeansError, match="max_frames 4"):
        kmeans.fit(model, recordings, layer=1, num_clusters=5, max_frames=4)


def test_saved_and_read(fitted, tmp_path):
    path = tmp_path / "new" / "km.npz"
    kmeans.save(path, fitted)
    found = kmeans.load(path)
    assert found.convention == fitted.convention
    for layer, array in fitted.centroids.items():
        np.testing.assert_array_equal(found.centroids[layer], array)
    with np.load(path, allow_pickle=False) as plain:  # as anyone reads it
        assert plain["centroids_03"].dtype == np.float32
    assert [p.name for p in path.parent.iterdir()] == ["km.npz"]
    (tmp_path / "file").write_text("")
    with pytest.raises(outputs.OutputError, match="cannot write"):
        kmeans.save(tmp_path / "file" / "km.npz", fitted)


def test_another_convention_is_refused_by_its_name(model, fitted):
    fitted.check(model, layers=[1, 3], tensor="ffn", network="student")
    for changed in (
        {"layers": [2]}, {"tensor": "block"}, {"network": "teacher"},
    ):  # fmt: skip
        asked = {"layers": [1], "tensor": "ffn", "network": "student"} | changed
        name = {"layers": "layer", "network": "model"}.get(*changed, *changed)
        with pytest.raises(kmeans.KMeansError, match=f"^{name}: the k-means file is for"):
            fitted.check(model, **asked)
    asked = {"layers": [1], "tensor": "ffn", "network": "student"}
    with pytest.raises(kmeans.KMeansError, match="^fingerprint: .*another checkpoint"):
        fitted.check(tiny_model(seed=1), **asked)
    convention = dict(fitted.convention) | {"width": 64}
    with pytest.raises(kmeans.KMeansError, match="^width: the k-means file is for 64, found 32"):
        fitted._replace(convention=convention).check(model, **asked)


def test_heads_teacher_and_codebooks_do_not_matter_for_features_of_the_student(model, fitted):
    asked = {"layers": [1], "tensor": "ffn", "network": "student"}
    other = tiny_model(seed=1)
    params = model.params | {"heads": other.params["heads"]}
    parts = {"params": params, "teacher_params": other.teacher_params, "codebook": other.codebook}
    fitted.check(Pretrained(model.config, **parts), **asked)
    louder = jax.tree.map(lambda x: x + 1e-3, params["encoder"])
    changed = Pretrained(model.config, **parts | {"params": params | {"encoder": louder}})
    with pytest.raises(kmeans.KMeansError, match="^fingerprint: "):
        fitted.check(changed, **asked)
    of_teacher = fitted._replace(
        convention=kmeans.convention_of(model, tensor="ffn", network="teacher")
    )
    with pytest.raises(kmeans.KMeansError, match="^fingerprint: "):  # it has another teacher
        of_teacher.check(Pretrained(model.config, **parts), **asked | {"network": "teacher"})


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def damaged(kind, whole, trap):
    """Bytes of a file that is no k-means file."""
    if kind == "pickle":
        return pickle.dumps(Trap(trap))
    if kind == "compressed pickle":
        import zlib

        return zlib.compress(pickle.dumps(Trap(trap)))
    if kind == "truncated":
        return whole[: len(whole) // 2]
    if kind == "text":
        return b"no arrays"
    buffer = io.BytesIO()
    with np.load(io.BytesIO(whole)) as file:
        arrays = dict(file)
    if kind == "object array":
        arrays["centroids_01"] = np.array([Trap(trap)], object)
    if kind == "compressed":
        np.savez_compressed(buffer, big=np.zeros(1_000_000), **arrays)
        return buffer.getvalue()
    if kind == "nan":
        arrays["centroids_01"] = arrays["centroids_01"] * np.float32(np.nan)
    if kind == "shape":
        arrays["centroids_03"] = arrays["centroids_03"][:, :-1]
    if kind == "no convention":
        del arrays["convention"]
    if kind == "other convention":
        arrays["convention"] = np.asarray("[]")
    if kind == "later":
        arrays["convention"] = np.asarray(json.dumps({"format": kmeans._FORMAT, "version": 2}))
    if kind == "more":
        arrays["centroids_07"] = arrays["centroids_01"]
    if kind == "huge header":
        with zipfile.ZipFile(buffer, "w") as archive:
            member = io.BytesIO()
            header = {"descr": "<f4", "fortran_order": False, "shape": (2**60,)}
            np.lib.format.write_array_header_1_0(member, header)
            archive.writestr("convention.npy", member.getvalue())
        return buffer.getvalue()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", "could run anything"),
        ("compressed pickle", "could run anything"),
        ("object array", "damaged"),
        ("truncated", "expected the .npz"),
        ("text", "not an .npz"),
        ("compressed", "compressed"),
        ("nan", "finite"),
        ("shape", r"centroids_03: found float32\[5, 31\], expected float32\[5, 32\]"),
        ("no convention", "convention"),
        ("other convention", "convention"),
        ("later", "version"),
        ("more", "centroids_07"),
        ("huge header", "damaged"),
    ],
)
def test_hostile_and_damaged_files(fitted, tmp_path, kind, message):
    path, trap = tmp_path / "km.npz", tmp_path / "ran"
    kmeans.save(path, fitted)
    path.write_bytes(damaged(kind, path.read_bytes(), trap))
    with pytest.raises(kmeans.KMeansError, match=message) as caught:
        kmeans.load(path)
    assert str(path) in str(caught.value) and not trap.exists()


def test_no_file(tmp_path):
    with pytest.raises(kmeans.KMeansError, match="no such k-means file; --fit"):
        kmeans.load(tmp_path / "km.npz")
    with pytest.raises(kmeans.KMeansError, match="no k-means file|not an .npz"):
        kmeans.load(tmp_path)
