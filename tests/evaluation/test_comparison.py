"""A network beside MFCC and itself untrained, on a small corpus: files, figures, divisions."""

import copy

import jax
import numpy as np
import optax
import pytest

from configs import tiny
from dinosr_jax.config import parse
from dinosr_jax.data.phones.alignments import Alignment
from dinosr_jax.data.phones.phones import Phone
from dinosr_jax.evaluation import comparison, result_files
from dinosr_jax.evaluation.corpus import Corpus
from dinosr_jax.evaluation.features import compute, store
from dinosr_jax.evaluation.probes import frame_classifier, head_training
from dinosr_jax.evaluation.result_files import Validated
from dinosr_jax.evaluation.units import baselines
from dinosr_jax.evaluation.utterances import Labelled
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording
from dinosr_jax.inference.units import kmeans
from dinosr_jax.objective import information
from dinosr_jax.training.state import init_state

pytestmark = pytest.mark.usefixtures("compile_quickly")
PITCHES = {"AA": 300, "B": 900, "K": 2500, "SIL": 0}


def utterance(name, seed):
    """0.6 s of phones of 60 to 140 ms, each a tone in noise; silence is noise alone."""
    rng = np.random.default_rng(seed)
    labels = [str(label) for label in rng.choice(list(PITCHES), 6)]
    lengths = rng.permutation([6, 8, 10, 10, 12, 14]) * 160  # one shape to compile
    ends = np.cumsum(lengths) / 16_000
    starts = ends - lengths / 16_000
    phones = tuple(Phone(*span) for span in zip(starts, ends, labels, strict=True))
    pitch = np.repeat([PITCHES[label] for label in labels], lengths)
    wave = np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + 0.05 * rng.standard_normal(len(pitch))
    recording = Recording(name, name, wave.astype(np.float32), len(wave))
    return Labelled(recording, phones, "x", "a text")


@pytest.fixture(scope="module")
def model(compile_quickly):
    config = tiny.get_config()
    config.model.num_layers, config.model.num_codebooks = 2, 2
    config.model.codebook_size = 6
    config = parse(config)
    state = jax.jit(lambda: init_state(config, optimizer=optax.identity()))()
    parts = {"params": state.params, "teacher_params": state.teacher_params}
    return Pretrained(config, **parts, codebook=state.codebook, step=3, path="runs/x")


@pytest.fixture(scope="module")
def corpus():
    train = [utterance(f"train/{i}", i) for i in range(16)]
    test = [utterance(f"test/{i}", 100 + i) for i in range(6)]
    named = {u.recording.id: u.phones for u in (*train, *test)}
    alignment = Alignment(named, "tsv", "phones.tsv")
    recordings = [u.recording for u in train]
    return Corpus("data", alignment, "train", "test", recordings, train, test)


@pytest.fixture(scope="module")
def options():
    return comparison.ComparisonOptions(
        of_frames=frame_classifier.ClassifierSettings(num_steps=150, batch_frames=64),
        of_recognition=head_training.HeadSettings(
            num_steps=60, eval_steps=30, batch_size=8, project_width=16, learning_rates=(3e-2,)
        ),
    )


@pytest.fixture(scope="module")
def compared(model, corpus, options, tmp_path_factory, compile_quickly):
    output = tmp_path_factory.mktemp("run") / "evaluation"
    found = comparison.compare(model, corpus, output=output, command="the command", options=options)
    return output, found


def test_files_of_results(compared, corpus):
    output, found = compared
    by_kind = {path.stem: result_files.read_result(path) for path in output.glob("*.json")}
    assert by_kind.keys() == {"frames", "recognition", "units"}
    assert all(result["kind"] == kind for kind, result in by_kind.items())
    for kind, result in by_kind.items():
        assert result["rows"] == found[kind]
        assert result["command"] == "the command" and result["step"] == 3
        assert "6 utterances" in result["data"] and "phones.tsv" in result["rule"]
        assert "1 speaker" in result["data"]
    where = lambda kind: [(row["system"], row["layer"]) for row in found[kind]]
    assert where("units") == [
        ("codebook", 1), ("codebook", 2), ("kmeans", 1), ("kmeans", 2), ("mfcc", None),
        ("untrained", 1), ("untrained", 2),
    ]  # fmt: skip
    layers = [0, 1, 2, "weighted"]
    assert where("frames") == [
        *(("codebook", layer) for layer in layers),
        ("mfcc", None),
        *(("untrained", layer) for layer in layers),
    ]
    assert where("recognition") == [
        ("codebook", "weighted"), ("mfcc", None), ("untrained", "weighted"),
    ]  # fmt: skip
    units = by_kind["units"]
    assert units["phones"] == list(corpus.alignment.labels) == ["AA", "B", "K", "SIL"]
    for row in units["rows"]:
        assert np.shape(row["counts"]) == (4, 6) and row["num_units"] == 6
        assert row["pnmi"] == pytest.approx(pnmi_by_entropies(np.array(row["counts"])))


def pnmi_by_entropies(counts):
    """(H(phone) + H(unit) - H(phone, unit)) / H(phone)."""
    share = counts / counts.sum()
    entropy = lambda p: -sum(x * np.log2(x) for x in p.ravel() if x)
    of_phones, of_units = entropy(share.sum(axis=1)), entropy(share.sum(axis=0))
    return (of_phones + of_units - entropy(share)) / of_phones


def test_units_are_counted_beside_phones(compared, model, corpus):
    """Every unit stands for 20 ms, looked at every 10 ms."""
    _, found = compared
    for row in found["units"][:2]:  # the codebooks
        counts = np.zeros((4, 6), int)
        for utterance in corpus.test:
            units = model.units(utterance.recording.source, layer=row["layer"])
            for step, unit in enumerate(np.repeat(units, 2)):
                time = 0.01 * (step + 0.5)
                (label,) = (p.label for p in utterance.phones if p.start <= time < p.end)
                counts[corpus.alignment.labels.index(label), unit] += 1
        np.testing.assert_array_equal(row["counts"], counts)


def test_what_is_easy_is_found(compared):
    """The phones are tones: MFCC tells them apart, in all three ways."""
    _, found = compared
    of = lambda kind, name: {row["system"]: row[name] for row in found[kind]}
    assert of("units", "pnmi")["mfcc"] > 0.5
    assert of("frames", "accuracy")["mfcc"] > 0.8
    assert of("recognition", "per")["mfcc"] < 0.5
    best = max(row["accuracy"] for row in found["frames"] if row["system"] == "codebook")
    assert best > found["frames"][0]["most_frequent"] + 0.1
    text = comparison.summary(found)
    assert len(text.splitlines()) == 4 and "PNMI" in text and "(layer " in text
    for row in found["units"][:2]:  # the codebooks
        chosen = comparison.summary(found, Validated(row["layer"], "dev")).splitlines()[1]
        assert f"{row['pnmi']:.3f} (layer {row['layer']}, chosen on dev)" in chosen


def test_the_example(compared, model, corpus):
    output, _ = compared
    with np.load(output / "utterance.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    assert found.keys() == {
        "waveform", "codes", "layers", "phone_starts", "phone_ends", "phone_labels", "id", "text",
    }  # fmt: skip
    chosen = next(u for u in corpus.test if u.recording.id == str(found["id"]))
    np.testing.assert_array_equal(found["waveform"], chosen.recording.source)
    assert found["layers"].tolist() == [1, 2] and str(found["text"]) == "a text"
    assert found["codes"].shape == (2, model.num_frames(len(found["waveform"])))
    for i, layer in enumerate((1, 2)):
        codes = model.units(found["waveform"], layer=layer)
        np.testing.assert_array_equal(found["codes"][i], codes)
    labels = [phone.label for phone in chosen.phones]
    assert found["phone_labels"].tolist() == labels
    assert found["phone_starts"].dtype == found["phone_ends"].dtype == np.float64


def test_features_are_those_of_extract(model, corpus):
    recordings = [u.recording for u in corpus.test[:2]]
    found = dict(compute.of_network(model, recordings))
    for recording in recordings:
        expected = model.extract(recording.source, layer=2)
        array = found[recording.id]
        assert array.dtype == np.float32 and array.shape == (3, *expected.shape)
        np.testing.assert_allclose(array[2], expected, atol=1e-5)


@pytest.mark.slow
def test_the_untrained_network_is_of_its_seed(model):
    first, again, other = (compute.untrained(model, seed=seed) for seed in (5, 5, 6))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.config.model == model.config.model and first.step == 0


def test_what_does_not_fit_into_memory_gives_the_same(compared, model, corpus, tmp_path, options):
    """All utterances are used, from files, and nothing of them is left."""
    said = []
    where = {"output": tmp_path, "command": "", "progress": comparison.Progress(said.append)}
    little = options._replace(tasks=("frames", "recognition"), max_bytes=1)
    found = comparison.compare(model, corpus, options=little, **where)
    assert found == {task: compared[1][task] for task in found} and len(said) == 3
    assert all("they are kept in" in text for text in said)


def test_frames_that_fit_no_10_ms_are_refused_before_anything_is_computed(model, corpus, tmp_path):
    config = model.config.copy_and_resolve_references().to_dict()
    config["model"]["conv_layers"] = ((16, 10, 5), (16, 48, 48))
    other = copy.copy(model)
    other.config = parse(config)
    options = comparison.ComparisonOptions(tasks=("frames", "units"))
    with pytest.raises(ValueError, match=r"model\.conv_layers: .* a frame every 15 ms"):
        comparison.compare(other, corpus, output=tmp_path / "out", command="", options=options)
    assert not (tmp_path / "out").exists()
    for stride, milliseconds in ((32, 10), (64, 20), (128, 40)):
        config["model"]["conv_layers"] = ((16, 10, 5), (16, stride, stride))
        other.config = parse(config)
        assert baselines.rule(other).unit_seconds == pytest.approx(milliseconds / 1000)


def test_kmeans_is_fitted_on_one_part_and_used_on_the_other(model):
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(4, 8)
    truth = [rng.integers(0, 4, n) for n in (300, 40)]
    train, test = (
        store.Features((7,), {"x": (centres[t] + rng.normal(0, 0.1, (len(t), 8)))[None]})
        for t in truth
    )
    codes = baselines.kmeans_codes(train, test, num_clusters=4)[7]["x"]
    table = np.zeros((4, 4), int)
    np.add.at(table, (truth[1], codes), 1)
    assert information.pnmi(table) == pytest.approx(1)
    with pytest.raises(kmeans.KMeansError, match="300 frames cannot make 301 clusters"):
        baselines.kmeans_codes(train, test, num_clusters=301)


def test_how_much_is_clustered(model, corpus):
    assert baselines.minutes_for(model) == pytest.approx(256 * 6 / 50 / 60)
    recordings = [u.recording for u in corpus.train]
    chosen = baselines.some_of(recordings, minutes=2 / 60)
    lengths = [r.num_samples / 16_000 for r in chosen]
    assert sum(lengths) >= 2 > sum(lengths[:-1])
    assert chosen == baselines.some_of(recordings[::-1], minutes=2 / 60)
    assert len(baselines.some_of(recordings, minutes=99)) == 16
