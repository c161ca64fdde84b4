"""Where a run was trained, against what this process is."""

import json
import platform

import jax

from dinosr_jax.training.environment import describe_environment, record_environment


def test_it_names_devices_host_and_versions():
    found = describe_environment()
    assert found["devices"].startswith("8 x ") and found["processes"] == "1"  # see conftest.py
    assert f"jax {jax.__version__}" in found["versions"]
    assert f"Python {platform.python_version()}" in found["versions"]
    assert "cores" in found["host"] and platform.system() in found["host"]


def test_every_start_is_a_line(tmp_path):
    path = tmp_path / "environment.jsonl"
    for step in (0, 300):
        record_environment(path, step=step)
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 300)
    assert first["devices"] == second["devices"]
