"""Where a run was trained: devices, host and versions, one line each time it started."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections import Counter
from pathlib import Path

import jax

from dinosr_jax import __version__

_LIBRARIES = ("jax", "flax", "optax", "numpy")


def describe_environment() -> dict[str, str]:
    """Devices of all processes, and host and versions of this one, as texts to read."""
    kinds = Counter(f"{device.device_kind} ({device.platform})" for device in jax.devices())
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES]
    own = [f"dinosr_jax {__version__}", f"Python {platform.python_version()}"]
    return {
        "devices": ", ".join(f"{number} x {kind}" for kind, number in kinds.items()),
        "processes": str(jax.process_count()),
        "host": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": ", ".join(own + versions),
    }


def record_environment(path: Path, *, step: int) -> None:
    """Adds the environment, at the start after `step` updates, to WORKDIR/environment.jsonl."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"step": step, "date": now, **describe_environment()}
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _processor() -> str:
    """The vendor's name of the processor, where the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
