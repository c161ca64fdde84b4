"""Compiles the update for TPUs that are not there: what it would need and take.

The compiler is that of PyPI's `libtpu`, in a process of its own: jax here keeps its CPU or GPU.
State and batch are shapes; nothing is allocated on any device.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from dinosr_jax.config import parse
from dinosr_jax.data.batches.crops import SAMPLE_RATE
from dinosr_jax.data.batches.lengths import lengths_of_frames
from dinosr_jax.data.vocabulary import letters
from dinosr_jax.errors import UserError
from dinosr_jax.model.feature_encoder import receptive_field
from dinosr_jax.training import sharding
from dinosr_jax.training.ctc.step import make_finetuning_step
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.planning import hlo
from dinosr_jax.training.planning.estimate import CHIPS, GIB, Estimate
from dinosr_jax.training.planning.traffic import traffic_by_place
from dinosr_jax.training.state import Batch, init_state
from dinosr_jax.training.step import make_train_step

_LABELS_A_SECOND = 20  # of a transcript, at most; speech has 15 letters a second
Optimization = Literal["O0", "O1", "O2", "O3"]


class AheadError(UserError):
    """An update cannot be compiled; the message says why and what to do."""


def check_topology(topology: str) -> int:
    """Number of chips of a topology such as 'v5e:4x4'; AheadError for what is none."""
    name, _, sizes = topology.partition(":")
    chip = CHIPS.get(name)
    if chip and re.fullmatch("x".join([r"[1-9]\d*"] * chip.dimensions), sizes):
        count = math.prod(map(int, sizes.split("x")))
        if count <= chip.most:
            return count
    known = [f"{n}:{'x'.join('ABC'[: c.dimensions])}" for n, c in CHIPS.items()]
    raise AheadError(
        f"--topology: found {topology!r}, expected one of {', '.join(known)} with numbers of chips "
        "along each axis, such as v5e:4x4, v5e:16x16 (the largest), v6e:2x4, v4:2x2x2, v5p:4x4x4"
    )


def with_batch(config: Any, chips: int, *, batch_size: int | None, seconds: float | None):
    """The parsed configuration with a `batch_multiple` that suits the mesh; utterances; samples.

    The batch is of `batch_size` utterances, over all devices, of `seconds` each; by default of as
    many of the longest crops as `max_batch_seconds` holds, shortened where it does not hold one for
    each device.

    Raises:
      AheadError: `batch_size` cannot be dealt to the devices.
      ValueError: The configuration has errors.
    """
    checked = parse(config)
    data, sizes = checked.data, dict(checked.mesh)
    given = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: chips // given if size == -1 else size for axis, size in sizes.items()}
    deal = sizes["data"] * sizes["fsdp"] * checked.optimizer.accumulation_steps
    multiple = math.lcm(data.batch_multiple, max(deal, 1))
    if batch_size and deal and batch_size % deal:
        raise AheadError(
            f"--batch_size: {batch_size} utterances cannot be dealt to devices and micro-batches; "
            f"expected a multiple of {deal}"
        )
    budget = int(data.max_batch_seconds * SAMPLE_RATE)
    longest = int((seconds or data.max_seconds) * SAMPLE_RATE)
    longest = min(longest, budget // (batch_size or multiple)) if seconds is None else longest
    field, hop = receptive_field(checked.model.conv_layers)
    lengths = lengths_of_frames(longest, field=field, hop=hop)
    if not len(lengths):
        raise AheadError(f"a batch of {multiple} utterances leaves {longest} samples for each")
    samples = int(lengths[-1])
    size = batch_size or max(budget // samples // multiple, 1) * multiple
    config["data"]["batch_multiple"] = math.gcd(multiple, size)
    return parse(config), size, samples


def find_libtpu(folder: Path | None) -> None:
    """Raises AheadError, with the command that installs it, where the compiler is not there."""
    if folder is not None and (Path(folder) / "libtpu" / "libtpu.so").is_file():
        return
    spec = importlib.util.find_spec("libtpu")
    if folder is None and spec is not None and spec.origin is not None:
        return
    needs = importlib.metadata.requires("jax") or []
    versions = [n.partition(";")[0].strip() for n in needs if n.startswith("libtpu")]
    command = f"{sys.executable} -m pip install --no-deps --target={folder or 'libtpu'} "
    raise AheadError(
        f"libtpu, the compiler for TPUs, is not in {folder or 'this environment'}. Install it in a "
        f"folder of its own: {command}'{[*versions, 'libtpu'][0]}' and give the folder: "
        f"--libtpu={folder or 'libtpu'} (or set DINOSR_LIBTPU)"
    )


def compile_ahead(
    config: dict,
    *,
    topology: str,
    batch_size: int | None = None,
    seconds: float | None = None,
    optimization: Optimization = "O0",
    libtpu: Path | None = None,
    progress: Callable[[float], None] = lambda elapsed: None,
) -> Estimate:
    """Compiles the update of a configuration for a TPU topology, in a process of its own.

    The batch is as of `with_batch`; `optimization` is the effort of the compiler (runs have 'O2');
    `libtpu` a folder with libtpu, None for this environment. `progress` is called every second with
    the seconds since the start.

    Raises:
      AheadError: It cannot be compiled.
    """
    check_topology(topology)
    find_libtpu(libtpu)
    request = {"config": config, "topology": topology, "optimization": optimization}
    request |= {"batch_size": batch_size, "seconds": seconds}
    command = [sys.executable, "-c", f"from {__name__} import _answer; _answer()"]
    start, text = time.monotonic(), json.dumps(request)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True, env=environment(libtpu)) as process:
        try:
            while process.returncode is None:
                progress(time.monotonic() - start)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, errors = process.communicate(text, timeout=1)
                text = None  # it has been sent
        finally:
            process.kill()
    lines = output.splitlines()
    if process.returncode or not lines:
        last = "\n".join(errors.splitlines()[-20:])
        raise AheadError(f"the compiler ended with {process.returncode}:\n{last}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise AheadError(answer["error"])
    return Estimate(**answer)


def environment(libtpu: Path | None) -> dict[str, str]:
    """Variables of the process that compiles, with libtpu of a folder, or of here."""
    paths = [libtpu and str(libtpu), str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",  # those of a GPU would be errors
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is opened that could be taken
        # libtpu asks no metadata server, and does not complain that there is none
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def _answer() -> None:
    """The process with libtpu: a request from stdin, an estimate as one line of JSON to stdout."""
    request = json.load(sys.stdin)
    try:
        answer = dataclasses.asdict(_compile(**request))
    except (AheadError, ValueError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def _compile(
    config: dict, topology: str, optimization: str, **batch_options: float | None
) -> Estimate:
    """Compiles in this process; `batch_options` are `batch_size` and `seconds`."""
    make_step = make_train_step
    if config["task"] == "ctc":
        make_step = make_finetuning_step
        config["ctc"]["symbols"] = config["ctc"]["symbols"] or letters().symbols

    jax.config.update("jax_optimization_level", optimization)
    devices = _topology_devices(topology)
    multiple = config["data"]["batch_multiple"]
    checked, size, samples = with_batch(config, len(devices), **batch_options)
    raised = checked.data.batch_multiple
    mesh = sharding.make_mesh(checked, devices)
    init = functools.partial(init_state, checked, optimizer=make_optimizer(checked))
    state, _ = sharding.make_state(mesh, init)
    batch = _abstract_batch(checked.task, sharding.batch_sharding(mesh), size, samples)
    start, cpu_start = time.monotonic(), time.process_time()
    traced = sharding.jit_train_step(mesh, make_step(checked), state).trace(state, batch)
    version = lambda name: f"{name} {importlib.metadata.version(name)}"
    estimate = Estimate(
        topology=topology,
        chips=len(devices),
        mesh=dict(mesh.shape),
        batch_size=size,
        seconds=samples / SAMPLE_RATE,
        raised=raised if raised != multiple else 0,
        compute_dtype=checked.compute_dtype,
        versions=f"{version('jax')}, {version('libtpu')}",
        optimization=optimization,
        flops=hlo.flops(traced.jaxpr) / mesh.size,
    )
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise AheadError(f"{topology}: {error}") from error
        estimate.out_of_memory, estimate.needed = _shortage(str(error))
    estimate.compile_seconds = time.monotonic() - start
    estimate.cpu_seconds = time.process_time() - cpu_start
    if not estimate.out_of_memory:
        _measure(estimate, compiled, devices=mesh.size)
    return estimate


def _abstract_batch(task: str, where: Any, size: int, samples: int) -> Any:
    """Shapes of a batch, cut over the devices."""
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=where)
    batch = Batch(array(jnp.float32, samples))
    if task == "ctc":
        labels = samples // SAMPLE_RATE * _LABELS_A_SECOND
        numbers = {name: array(jnp.int32) for name in ("num_samples", "num_labels")}
        batch = batch._replace(labels=array(jnp.int32, labels), **numbers)
    return batch


def _topology_devices(topology: str) -> list[Any]:
    """The devices of a topology that is not there; needs libtpu in this process."""
    name, _, sizes = topology.partition(":")
    host = [min(int(size), 2) for size in sizes.split("x")]  # chips of a host, as in the smallest
    options = {"chips_per_host_bounds": tuple(host + [1] * (3 - len(host)))}
    if CHIPS[name].dimensions == 3:
        options["chips_per_host_bounds"] = (*host[:2], 1)
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device
    try:
        where = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        raise AheadError(f"--topology: libtpu refuses {topology!r}: {error}") from error
    return list(where.devices)


def _shortage(message: str) -> tuple[str, dict[str, int]]:
    """Of XLA's message on memory that does not suffice: a line, and the bytes needed."""
    used = re.search(r"Used ([\d.]+[KMGT]?) of [\d.]+[KMGT]? hbm", message)
    exceeds = r"temporaries \(([\d.]+[KMGT]?)\) exceeds [^()]*\([\d.]+[KMGT]?\)"
    temporaries = re.search(exceeds, message)
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    count = lambda text: int(float(text.rstrip("KMGT")) * units.get(text[-1], 1))
    if shortage := used or temporaries:
        return shortage[0], {"in all" if used else "temporaries": count(shortage[1])}
    return message.splitlines()[0][:400], {}


def _measure(estimate: Estimate, compiled: Any, *, devices: int) -> None:
    """Fills in memory, traffic and collectives."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    estimate.needed = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    estimate.flops_loops_once = cost.get("flops", 0.0)
    program = hlo.Program(compiled.as_text(), devices=devices)
    estimate.traffic = program.traffic()
    estimate.traffic_by_place = [list(row) for row in traffic_by_place(program)]
    sums: dict[tuple, list] = {}
    for c in program.collectives():
        row = sums.setdefault((c.kind, c.devices, c.counted), [0, 0, 0.0])
        row[:] = row[0] + c.turns, row[1] + c.turns * c.size, row[2] + c.sent
    estimate.collectives = [[kind, n, *row, known] for (kind, n, known), row in sums.items()]
