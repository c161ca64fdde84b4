"""Units of all sources against what the network says directly, golden codes, chunks."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.config import parse
from dinosr_jax.data import audio
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.units import kmeans, quantise
from dinosr_jax.interop import fairseq
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.training.state import make_model
from dinosr_jax.training.step import apply
from tests.tiny_runs import tiny_model

pytestmark = pytest.mark.usefixtures("compile_quickly")
GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def model(compile_quickly):
    """An untrained network, whose teacher is not its student."""
    return tiny_model(**{"teacher.init": "reinit"})


@pytest.fixture(scope="module")
def waves():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(n).astype(np.float32) for n in (9_000, 400, 20_000)]


@pytest.fixture(scope="module")
def alone(model):
    """All layers of one waveform without padding, straight from the network."""
    net = make_model(model.config)

    @jax.jit
    def forward(params, wave):
        x = apply(net, params, wave, method="project")
        return apply(net, params, x, all_layers=True, method="encode")

    return lambda wave, network: forward(
        model.full_params(network), jnp.asarray(audio.normalise(wave))[None]
    )


def nearest(z, words):
    """Plain NumPy: the nearest of words [V, D] to z [T, D], and how clear it is."""
    distances = np.square(z[:, None].astype(np.float64) - words[None]).sum(-1)
    two = np.sort(distances, axis=1)
    return distances.argmin(1), two[:, 1] - two[:, 0] if words.shape[0] > 1 else np.inf


def same(found, expected, margin, *, clear=1e-3):
    assert found.dtype == np.int32 and found.shape == expected.shape
    sure = margin > clear
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(found[sure], expected[sure])


def normalised(ffn):
    ffn = np.asarray(ffn, np.float64)
    return (ffn - ffn.mean(0)) / np.sqrt(ffn.var(0) + 1e-5)


def test_codebook_units_are_the_nearest_codewords_of_the_teacher(model, waves, alone):
    found = model.units(waves, layer="all")
    words = np.asarray(codebooks.codewords(model.codebook))
    for wave, codes in zip(waves, found, strict=True):
        assert list(codes) == [2, 3]
        if len(wave) == 400:  # one frame: nothing is left of it by the normalisation
            norms = np.square(words).sum(-1).argmin(-1)
            assert [codes[2].tolist(), codes[3].tolist()] == [[norms[0]], [norms[1]]]
            continue
        ffn = alone(wave, "teacher").ffn
        for layer, k in ((2, 0), (3, 1)):
            same(codes[layer], *nearest(normalised(ffn[layer - 1, 0]), words[k]))
    assert [len(codes[2]) for codes in found] == [27, 1, 62]


def test_head_units_are_the_students_guesses_from_its_last_layer(model, waves, alone):
    kernel, bias = (np.asarray(model.params["heads"][name]) for name in ("kernel", "bias"))
    found = model.units(waves[2], layer=[3, 2], source="head")
    assert list(found) == [3, 2]
    last = np.asarray(alone(waves[2], "student").output[0])
    for layer, k in ((2, 0), (3, 1)):
        logits = last @ kernel[k] + bias[k][None]
        two = np.sort(logits, axis=1)
        same(found[layer], logits.argmax(1), two[:, -1] - two[:, -2])
    one = model.units(waves[2], layer=2, source="head")
    np.testing.assert_array_equal(one, found[2])


def of_objective(model, objective):
    """The same network of another objective: student and teacher have the same layout."""
    changes = {"objective": objective, "model": model.config.model.to_dict() | {"layerdrop": 0.0}}
    config = parse(model.config.to_dict() | changes)
    codebook = None if objective == "data2vec" else model.codebook
    parts = {"params": model.params, "teacher_params": model.teacher_params}
    return Pretrained(config, **parts, codebook=codebook, path="run")


def test_head_units_of_spidr_are_guessed_from_their_own_layers(model, waves, alone):
    other = of_objective(model, "spidr")
    kernel, bias = (np.asarray(model.params["heads"][name]) for name in ("kernel", "bias"))
    found = other.units(waves[2], layer=[3, 2], source="head")
    ffn = np.asarray(alone(waves[2], "student").ffn[:, 0])
    for layer, k in ((2, 0), (3, 1)):
        logits = ffn[layer - 1] @ kernel[k] + bias[k][None]
        two = np.sort(logits, axis=1)
        same(found[layer], logits.argmax(1), two[:, -1] - two[:, -2], clear=1e-5)
    one = other.units(waves[2], layer=2, source="head")
    np.testing.assert_array_equal(one, found[2])
    before = model.units(waves[2], layer=2, source="head")
    assert not np.array_equal(before, found[2])
    with pytest.raises(ValueError, match="tensor: found 'block'; source head reads 'ffn'"):
        quantise.plan(other, layer=2, source="head", tensor="block")


@pytest.mark.parametrize("source", ["codebook", "head"])
def test_an_objective_without_codes_has_no_units(source, model, waves):
    message = "run: config.objective is 'data2vec', which has no codebooks .*--source=kmeans --fit"
    with pytest.raises(ValueError, match=message):
        of_objective(model, "data2vec").units(waves[0], layer=2, source=source)


def centroids(model, *, layers, tensor, network, size=7):
    rng = np.random.default_rng(3)
    found = {n: rng.standard_normal((size, 32)).astype(np.float32) for n in layers}
    said = kmeans.convention_of(model, tensor=tensor, network=network)
    return kmeans.KMeans(found, said | {"layers": list(layers), "num_clusters": size})


def test_kmeans_units_are_the_nearest_centroids_of_raw_features(model, waves, tmp_path, alone):
    file = centroids(model, layers=(0, 1), tensor="block", network="teacher")
    kmeans.save(tmp_path / "km.npz", file)
    found = model.units(waves[::2], layer="all", source="kmeans", kmeans=tmp_path / "km.npz")
    for wave, codes in zip(waves[::2], found, strict=True):
        layers = alone(wave, "teacher")
        for layer, z in ((0, layers.input[0]), (1, layers.block[0, 0])):
            same(codes[layer], *nearest(np.asarray(z), file.centroids[layer]))


def test_equal_distances_go_to_the_lowest(model, waves):
    file = centroids(model, layers=(1,), tensor="block", network="student")
    file.centroids[1][:] = file.centroids[1][:1]
    found = model.units(waves[0], layer=1, source="kmeans", kmeans=file)
    assert (found == 0).all()


@pytest.fixture(scope="module")
def golden_model(compile_quickly):
    """The PyTorch peer's network, in which layers differ much from each other."""
    config = parse(fairseq.config_from_fields(json.loads((GOLDEN / "tiny.json").read_text())))
    state = fairseq.to_state(dict(np.load(GOLDEN / "tiny_weights.npz")), config=config)
    parts = {"params": state.params, "teacher_params": state.teacher_params}
    return Pretrained(config, **parts, codebook=state.codebook)


def test_golden_codes(golden_model):
    """Codes of the PyTorch peer, of all codebooks, from its weights."""
    golden = np.load(GOLDEN / "tiny.npz")
    found = golden_model.units(list(golden["waveforms"]), layer="all")
    codes = np.stack([np.stack(list(one.values())) for one in found], axis=1)
    np.testing.assert_array_equal(codes, golden["codeword_ids"])


def test_golden_head_units(golden_model):
    """The most probable codes by the peer's heads on the peer's last layer."""
    golden, weights = np.load(GOLDEN / "tiny.npz"), np.load(GOLDEN / "tiny_weights.npz")
    config = golden_model.config.model
    found = golden_model.units(list(golden["waveforms"]), layer="all", source="head")
    for k, layer in enumerate(found[0]):
        assert layer == config.num_layers - config.num_codebooks + 1 + k
        last = golden[f"student_layer_{config.num_layers - 1}"]
        logits = last @ weights[f"heads.{k}.weight"].T + weights[f"heads.{k}.bias"][None, None]
        two = np.sort(logits, axis=-1)
        for one, row, margin in zip(found, logits, two[..., -1] - two[..., -2], strict=True):
            same(one[layer], row.argmax(-1), margin)


def test_neighbours_and_order_leave_units_alone(model, waves):
    """Codes of the network's own features are clear here: none is near a tie."""
    together = model.units([*waves, waves[2][:15_000]], layer=[2, 3])
    backwards = model.units([waves[2][:15_000], *waves[::-1]], layer=[2, 3])[::-1][:-1]
    for wave, one, other in zip(waves, together, backwards, strict=False):
        single = model.units(wave, layer=[2, 3])
        for layer in (2, 3):
            np.testing.assert_array_equal(one[layer], single[layer])
            np.testing.assert_array_equal(other[layer], single[layer])


def test_a_long_recording_is_normalised_over_the_whole_of_it(model):
    """In chunks, codes are the nearest codewords to chunked features with moments of the whole."""
    rng = np.random.default_rng(1)
    wave = rng.standard_normal(95_999).astype(np.float32)
    wave[48_000:] = np.convolve(wave[48_000:], np.ones(9) / 3, "same")  # two halves that differ
    options = batched.Options(chunk_seconds=2.0, overlap_seconds=0.5)
    features = model.extract(wave, layer=2, tensor="ffn", model="teacher", options=options)
    words = np.asarray(codebooks.codewords(model.codebook))[0]
    expected, margin = nearest(normalised(features), words)
    done = []
    wanted = quantise.plan(model, layer=2)
    recordings, _ = model._recordings([wave, wave[:5_000]], 16_000)
    found = {
        utterance.recording.id: utterance.codes[0]
        for utterance in quantise.compute(
            wanted, recordings, options=options, progress=lambda d, total: done.append((d, total))
        )
    }
    same(found["0"], expected, margin)
    assert len(found["1"]) == 15
    total = (95_999 + 5_000) / 16_000
    assert sum(d for d, _ in done) == pytest.approx(total) and {t for _, t in done} == {total}


def test_moments_are_those_of_all_frames():
    array = np.random.default_rng(0).normal(5, 3, (100, 4)).astype(np.float32)
    moments = quantise._RunningMoments()
    for part in (array[:1], array[1:40], array[40:]):
        moments.add(part)
    mean, factor = moments.mean_and_factor()
    np.testing.assert_allclose(mean, array.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(factor, 1 / np.sqrt(array.var(0, np.float64) + 1e-5), rtol=1e-6)


def test_what_is_not_there(model, waves, tmp_path):
    for source in ("codebook", "head"):
        with pytest.raises(ValueError, match="layer 1 has no codebook; layers 2 to 3 have one"):
            model.units(waves[0], layer=1, source=source)
    with pytest.raises(ValueError, match="layer 4: this network has layers 1 to 3"):
        model.units(waves[0], layer=4)
    with pytest.raises(ValueError, match="source: found 'codebooks'"):
        model.units(waves[0], layer=2, source="codebooks")
    with pytest.raises(ValueError, match="model: found 'student'; source codebook reads 'teacher'"):
        model.units(waves[0], layer=2, model="student")
    with pytest.raises(ValueError, match="tensor: found 'ffn'; source head reads 'block'"):
        model.units(waves[0], layer=2, source="head", tensor="ffn")
    with pytest.raises(ValueError, match="needs a k-means file"):
        model.units(waves[0], layer=2, source="kmeans")
    with pytest.raises(ValueError, match="only it takes one"):
        model.units(waves[0], layer=2, kmeans=tmp_path)
    file = centroids(model, layers=(1,), tensor="block", network="student")
    with pytest.raises(kmeans.KMeansError, match="tensor: the k-means file is for 'block'"):
        model.units(waves[0], layer=1, source="kmeans", kmeans=file, tensor="ffn")
    with pytest.raises(kmeans.KMeansError, match="layer: the k-means file is for .1., found 2"):
        model.units(waves[0], layer=2, source="kmeans", kmeans=file)
    with pytest.raises(audio.AudioError, match="waveform 1: .*at least 400"):
        model.units([waves[0], waves[0][:399]], layer=2)
    counts = np.asarray(model.codebook.counts).copy()
    counts[0, 3] = 0
    empty = model.codebook._replace(counts=counts, sums=np.asarray(model.codebook.sums))
    broken = Pretrained(
        model.config, params=model.params, teacher_params=model.teacher_params, codebook=empty
    )
    with pytest.raises(ValueError, match="layer 2: its codebook has codewords that are not finite"):
        broken.units(waves[0], layer=2)
