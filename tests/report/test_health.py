"""Signs of health: those of runs that collapsed, of the published one, and of none."""

import json

import pytest

from dinosr_jax.report import health
from dinosr_jax.report.run_files import read_run
from tests.report_runs import write_training

TELL = "What the codes tell about"
POSITION, SPEAKER = "eval_position_information", "eval_speaker_information"


def run_with(tmp_path, *records, size=64, **guard):
    folder = write_training(tmp_path / "run", size=size)
    if guard:
        config = json.loads((folder / "config.json").read_text()) | {"guard": guard}
        (folder / "config.json").write_text(json.dumps(config))
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text)
    return read_run(folder)


def verdicts(run):
    return {sign.name.split(",")[0]: sign.verdict for sign in health.signs(run)}


def test_a_healthy_run_is_good_all_over(tmp_path):
    run = read_run(write_training(tmp_path / "run"))
    assert set(verdicts(run).values()) == {"good"}
    assert all(sign.bad and sign.value for sign in health.signs(run))


@pytest.mark.parametrize(
    ("size", "perplexity", "expected"),
    [(64, 7, "bad"), (64, 6, "bad"), (64, 26, "good"), (64, 12, "watch"), (256, 80, "good")],
)
def test_perplexities_of_known_runs(tmp_path, size, perplexity, expected):
    """6 and 7 of 64 have collapsed; 26 of 64 and 80 of 256 are the first updates of good ones."""
    record = {"step": 9, "target_perplexity_0": size / 2, "target_perplexity_1": perplexity}
    run = run_with(tmp_path, record | {"target_perplexity": size / 3}, size=size)
    assert verdicts(run)["Target perplexity"] == expected
    sign = health.signs(run)[1]
    assert "layer 3" in sign.value and f"of {size}" in sign.value


@pytest.mark.parametrize(
    ("record", "name", "expected"),
    [
        ({"loss": float("nan")}, "Loss is a number", "bad"),
        ({"loss": 3.0}, "Loss is a number", "good"),
        ({"codeword_use_0": 0.9, "codeword_use_1": 0.1}, "Codewords in use", "bad"),
        ({"codeword_use_0": 0.9, "codeword_use_1": 0.3}, "Codewords in use", "watch"),
        ({"accuracy": 0.05, "top_code_share": 0.05}, "Accuracy against guessing", "bad"),
        ({"accuracy": 0.2, "top_code_share": 0.05}, "Accuracy against guessing", "good"),
        ({"teacher_std": 0.05}, "Standard deviation of the teacher's output", "bad"),
        ({"teacher_std": 0.5}, "Standard deviation of the teacher's output", "good"),
        (
            {"feature_encoder_std": 0.005},
            "Standard deviation of the feature encoder's output",
            "bad",
        ),
        ({f"{POSITION}_0": 0.04, f"{POSITION}_1": 0.25}, f"{TELL} the position in the crop", "bad"),
        ({f"{SPEAKER}_0": 0.15, f"{SPEAKER}_1": 0.0}, f"{TELL} the speaker", "watch"),
        ({"eval_loudness_information": 0.2, "eval_pnmi": 0.1}, f"{TELL} loudness", "watch"),
        ({"eval_loudness_information": 0.2, "eval_pnmi": 0.4}, f"{TELL} loudness", "good"),
    ],
)
def test_a_sign(tmp_path, record, name, expected):
    assert verdicts(run_with(tmp_path, {"step": 9} | record))[name] == expected


def test_nothing_recorded_is_not_known(tmp_path):
    assert set(verdicts(run_with(tmp_path)).values()) == {"unknown"}


def test_bounds_of_the_configuration_count(tmp_path):
    record = {"step": 9, "teacher_std": 0.3}
    run = run_with(tmp_path, record, min_target_std=0.4)
    assert verdicts(run)["Standard deviation of the teacher's output"] == "bad"


def test_held_out_figures_come_before_those_of_a_batch(tmp_path):
    records = [{"step": 1, "eval_accuracy_0": 0.3}, {"step": 2, "accuracy_0": 0.1}]
    assert health.latest(records, "accuracy") == (1, [0.3])
    assert health.latest(records[1:], "accuracy") == (2, [0.1])
    assert health.latest(records[1:], "eval_accuracy") == (0, [])
    assert health.latest([{"step": 3, "accuracy": 0.2}], "accuracy") == (3, [0.2])


def test_what_codes_follow_by_codebook(tmp_path):
    record = {"step": 9, "eval_pnmi_0": 0.3, "eval_pnmi_1": 0.2, "eval_position_information_0": 0.1}
    run = run_with(tmp_path, record)
    expected = [("layer 2", {"phones": 0.3, "position": 0.1}), ("layer 3", {"phones": 0.2})]
    assert health.by_codebook(run) == expected
