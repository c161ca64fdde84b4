"""A recipe on other devices."""

import math
import runpy
from pathlib import Path

import jax
import pytest
from click.testing import CliRunner

from dinosr_jax import cli
from dinosr_jax.config import parse, read_file
from dinosr_jax.training import sharding
from dinosr_jax.training.planning.scaling import scale

BASE = Path(__file__).parents[3] / "configs" / "base.py"


def base() -> dict:
    return runpy.run_path(str(BASE))["get_config"]().to_dict()


@pytest.mark.parametrize(
    ("devices", "device_seconds", "expected"),
    [
        (16, 240.0, {}),
        (8, 240.0, {"optimizer.accumulation_steps": 2}),
        (1, 240.0, {"optimizer.accumulation_steps": 16}),
        (8, 480.0, {}),
        (3, 240.0, {"optimizer.accumulation_steps": 6, "data.batch_multiple": 18}),
        (32, 240.0, {"data.batch_multiple": 32}),
    ],
)
def test_accumulation_leaves_the_recipe(devices, device_seconds, expected):
    assert scale(base(), devices=devices, device_seconds=device_seconds) == expected


def test_a_quarter_of_the_batch():
    old = base()
    found = scale(old, devices=4, device_seconds=240.0, batch_seconds=950.0)
    assert found["data.max_batch_seconds"] == 950.0
    assert found["optimizer.learning_rate"] == pytest.approx(2.5e-4)
    assert found["optimizer.eps"] == pytest.approx(2e-6)
    assert (1 - found["optimizer.b1"], 1 - found["optimizer.b2"]) == pytest.approx((0.025, 0.005))
    for name in ("num_steps", "optimizer.warmup_steps", "optimizer.hold_steps"):
        part, _, field = name.rpartition(".")
        assert found[name] == 4 * (old[part] if part else old)[field]
    # four updates average like one of before
    for name in ("teacher.decay", "teacher.end_decay", "codebook.decay"):
        part, _, field = name.partition(".")
        assert found[name] ** 4 == pytest.approx(old[part][field])
    assert not {"log_steps", "checkpoint_steps", "data.batch_multiple"} & found.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 2, "device_seconds": 5.0}, "an utterance of 20 s"),
        ({"devices": 0, "device_seconds": 240.0}, "0 devices"),
        ({"devices": 2, "device_seconds": 240.0, "batch_seconds": 30.0}, "cannot be dealt"),
        ({"devices": 2, "device_seconds": 240.0, "batch_seconds": math.nan}, "batch_seconds"),
    ],
)
def test_what_cannot_be_is_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        scale(base(), **arguments)


def test_command_prints_flags_that_main_takes():
    arguments = ["scale", f"--config={BASE}", "--devices=8", "--config.mesh.fsdp=2"]
    done = CliRunner().invoke(cli.cli, arguments)
    assert done.exit_code == 0, done.output
    flags = done.output.replace("\\\n", "").split()[2:]
    assert flags[1:] == ["--config.mesh.fsdp=2", "--config.optimizer.accumulation_steps=2"]
    config = read_file(str(BASE), tuple(flags[1:]))
    parsed = sharding.make_mesh(parse(config))
    assert dict(parsed.shape) == {"data": len(jax.devices()) // 2, "fsdp": 2, "tensor": 1}
