"""Unit quality while training, against units of whole utterances and a count by hand."""

from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from dinosr_jax.data import audio
from dinosr_jax.data.batches.labelled import open_labelled
from dinosr_jax.data.batches.pipeline import open_split
from dinosr_jax.data.manifest import Records
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.objective import information
from dinosr_jax.training.compiled import Programs
from dinosr_jax.training.validation import Evaluation
from tests import update_runs
from tests.update_runs import on_mesh

ROOT = Path(__file__).parents[2]
SECONDS = (1.0, 1.3, 0.7, 2.4, 1.9, 1.1, 1.6, 1.2, 1.45, 0.9, 1.05)
MAX_SECONDS = 2.5
LABELS = ("AA", "B", "SIL", "K", "OW")
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Eleven utterances of two speakers; all but two have made-up phones, which end early."""
    source = tmp_path_factory.mktemp("source")
    waveform = soundfile.read(ROOT / "data/embedded/asterisk_ru.ogg", frames=30 * 16_000)[0]
    rows, random = ["file\tstart_s\tend_s\tphone"], np.random.default_rng(0)
    for number, seconds in enumerate(SECONDS):
        path = source / f"speaker{number % 2}" / f"{number}.flac"
        path.parent.mkdir(exist_ok=True)
        part = waveform[number * 40_000 :][: int(seconds * 16_000)]
        soundfile.write(path, part, 16_000)
        end = 0.0
        while number not in (5, 7) and end < seconds - 0.3:
            start, end = end, round(end + float(random.choice([0.05, 0.13, 0.21])), 2)
            rows.append(f"{number}\t{start}\t{end}\t{random.choice(LABELS)}")
    (source / "phones.tsv").write_text("\n".join(rows) + "\n")
    return source


def config_of(data_dir, **changes):
    fields = {"data.data_dir": str(data_dir), "data.eval_split": "train", "data.min_seconds": 0.5}
    fields |= {"data.max_seconds": MAX_SECONDS, "data.max_batch_seconds": 10.0}
    fields |= {"data.max_rungs": 1, "data.batch_multiple": 4, "mesh.data": 4, "eval_batches": 9}
    return update_runs.config_of(**(fields | changes))


def measure_on(config, *, use="training"):
    """State, metrics on the held-out split, and messages, of a network that any mesh has."""
    mesh, abstract, make = on_mesh(config)
    state, messages = make(), []
    evaluation = Evaluation(
        config,
        mesh,
        abstract,
        Programs(messages.append),
        eval_data=open_split(config.data, split=config.data.eval_split, seed=0, use=use),
        phone_data=open_labelled(config.data),
    )
    return state, evaluation.measure(state), messages


@pytest.fixture(scope="module")
def measured(data_dir):
    """Configuration, state, metrics and messages, on four devices."""
    config = config_of(data_dir)
    return config, *measure_on(config)


@pytest.mark.parametrize(
    ("number", "devices"), [(1, 8), pytest.param(3, 1, marks=pytest.mark.slow)]
)
def test_rows_that_only_fill_a_batch_count_nowhere(data_dir, number, devices):
    """Of fewer utterances than devices: the metrics are those of these utterances alone."""
    fields = {"data.eval_split": f"train[2:{2 + number}]", "data.max_batch_seconds": 20.0}
    alone = fields | {"data.batch_multiple": number, "mesh.data": 1}
    _, expected, _ = measure_on(config_of(data_dir, **alone))
    filled = fields | {"data.batch_multiple": 8, "mesh.data": devices}
    _, found, _ = measure_on(config_of(data_dir, **filled), use="held out")
    assert found.keys() == expected.keys() and {"eval_pnmi", "eval_loss_1"} <= found.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_the_last_utterances_are_measured_too(data_dir):
    """11 utterances in batches of 8: the first batch is a whole one."""
    config = config_of(data_dir, **{"data.max_batch_seconds": 20.0, "data.batch_multiple": 8})
    data = open_split(config.data, split="train", seed=0, use="held out")
    batches = [data.make_batch(k) for k in range(data.plan.num_batches)]
    assert sorted(id_ for batch in batches for id_ in batch.ids if id_) == sorted(data.manifest.ids)
    assert [data.has_empty_rows(k) for k in range(len(batches))] == [False, True]


def label_at(phones, seconds):
    return next((p.label for p in phones if p.start <= seconds < p.end), "SIL")


def test_pnmi_and_purity_are_those_of_the_units_of_whole_utterances(data_dir, measured):
    config, state, found, _ = measured
    data = open_labelled(config.data)
    model = Pretrained(
        config,
        params=jax.device_get(state.params),
        teacher_params=jax.device_get(state.teacher_params),
        codebook=jax.device_get(state.codebook),
    )
    records, layers = Records(data_dir, split="train"), (2, 3)
    table = np.zeros((2, len(data.phones), 16))
    assert len(data.manifest) == len(SECONDS) - 2
    for id_, position in zip(data.manifest.ids, data.manifest.positions, strict=True):
        wave = audio.load(records[position][0], name=id_)
        units = model.units(wave, layer=layers, source="codebook")
        phones = data._alignment[id_]
        for k, layer in enumerate(layers):
            for i, unit in enumerate(units[layer]):
                label = label_at(phones, (200 + 320 * i) / 16_000)
                table[k, data.phones.index(label), unit] += 1
    frames = sum((int(s * 16_000) - 400) // 320 + 1 for s in SECONDS)
    assert table[0].sum() == frames - 54 - 59  # of the two that have no phones
    for k in range(2):
        assert found[f"eval_pnmi_{k}"] == pytest.approx(information.pnmi(table[k]), abs=1e-9)
        purity = information.phone_purity(table[k])
        assert found[f"eval_phone_purity_{k}"] == pytest.approx(purity, abs=1e-9)
    mean = (found["eval_pnmi_0"] + found["eval_pnmi_1"]) / 2
    assert 0.02 < found["eval_pnmi"] == pytest.approx(mean)


def test_loss_loudness_and_speaker_are_measured_on_the_crops(measured):
    _, _, found, said = measured
    names = ("loss", "accuracy", "target_perplexity", "loudness_information")
    names += ("position_information",)
    assert all(np.isfinite(found[f"eval_{name}_1"]) for name in names)
    assert 0 < found["eval_speaker_information"] < 1
    assert sum("unit quality" in text for text in said) == 1  # one shape
    text = Evaluation.summary(7, found)
    assert text.startswith("update 7: held-out loss") and f"PNMI {found['eval_pnmi']:.3f}" in text
    assert "PNMI" not in Evaluation.summary(7, {k: v for k, v in found.items() if "pnmi" not in k})


def read(data, number, share):
    return list(data.batches(number, share=share, field=400, hop=320))


def test_hosts_read_their_rows_of_the_same_batches(data_dir):
    data = open_labelled(config_of(data_dir).data)
    number = data.num_batches(4)
    assert number == 3  # 9 utterances of up to 2.4 s in batches of 4
    whole = read(data, number, (0, 4, 4))
    parts = [read(data, number, share) for share in ((0, 1, 4), (1, 4, 4))]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert batch.waveforms.shape == (4, 38_400) and batch.phones.shape == (4, 119)
        for name, values in batch._asdict().items():
            both = np.concatenate([getattr(half, name) for half in halves])
            np.testing.assert_array_equal(values, both)
    assert sum((batch.phones[:, 0] >= 0).sum() for batch in whole) == 9  # others only fill
    assert (data.num_batches(1), data.num_batches(16)) == (3, 1)


def test_what_is_longer_than_training_crops_is_cropped_at_its_end(data_dir):
    whole = read(open_labelled(config_of(data_dir).data), 3, (0, 1, 1))
    data = open_labelled(config_of(data_dir, **{"data.max_seconds": 1.0}).data)
    cropped = read(data, data.num_batches(1), (0, 1, 1))
    join = lambda batches, name: np.concatenate([getattr(b, name) for b in batches])[:9]
    for name, size in (("waveforms", 16_000), ("phones", 49)):
        np.testing.assert_array_equal(join(cropped, name), join(whole, name)[:, :size])
    assert (join(cropped, "num_samples") == join(whole, "num_samples").clip(max=16_000)).all()


def test_a_damaged_record_is_left_out_and_named(data_dir, caplog):
    data = open_labelled(config_of(data_dir).data)
    good = read(data, 1, (0, 1, 1))[0]
    data._records = {position: (b"", "") for position in range(len(SECONDS))}
    bad = read(data, 1, (0, 1, 1))[0]
    assert (good.phones >= 0).any() and (bad.phones == -1).all()
    assert f"DAMAGED RECORD {data.manifest.ids[0]}" in caplog.text


def test_an_alignment_of_the_configuration_comes_first(data_dir, tmp_path):
    path = tmp_path / "phones.jsonl"
    path.write_text('{"name": "4", "phones": ["X", "Y", "Y"]}\n')
    data = open_labelled(config_of(data_dir, **{"data.alignment": str(path)}).data)
    assert data.manifest.ids.tolist() == ["speaker0/4"] and data.phones == ("SIL", "X", "Y")
    assert open_labelled(config_of(data_dir, **{"data.eval_split": ""}).data) is None
    path.write_text('{"name": "stranger", "phones": ["X"]}\n')
    config = config_of(data_dir, **{"data.alignment": str(path)})
    with pytest.raises(ValueError, match=r"config\.data\.alignment=.*no utterance of the split"):
        open_labelled(config.data)
