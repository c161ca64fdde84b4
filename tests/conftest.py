"""Eight CPU devices and strict numerics, set before jax is imported; fixtures of many files.

Tests import each other's helpers by name, and configurations as `from configs import tiny`.
"""

import contextlib
import logging
import os
import random
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with contextlib.suppress(ImportError):  # of torch; its libraries crash if they follow tensorflow's
    import triton  # noqa: F401

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Those that take longest start first: then the two processes of launch/test.sh end together.
LONGEST = """training/test_loop cli/test_start_run training/test_processes
evaluation/superb/test_systems data/prepare/test_librispeech inference/recognition/test_transcribe
data/prepare/test_audio_folder test_collection training/test_guard training/test_step
interop/test_recognisers training/ctc/test_step inference/units/test_quantise
inference/units/test_kmeans interop/test_fairseq interop/test_exports
inference/features/test_writer inference/units/test_writer""".split()


def pytest_collection_modifyitems(items):
    tests = Path(__file__).parent
    place = {tests / f"{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session")
def evaluated_report(tmp_path_factory):
    """(run, what was written) of a report of a run with all evaluations, and names to beware of."""
    from dinosr_jax.report.page import write_report
    from tests.report_runs import HOSTILE, PHONES, write_evaluation, write_training

    run = write_training(tmp_path_factory.mktemp("runs") / "a <b>run<b> & 'its' \"name\"")
    write_evaluation(run, phones=[*PHONES[:-2], *HOSTILE])
    return run, write_report(run)


@pytest.fixture(scope="module")
def data_dir(source, tmp_path_factory):
    """What `prepare` makes of the module's fixture `source`, a folder of audio."""
    from dinosr_jax.data.prepare.audio_folder import prepare

    folder = tmp_path_factory.mktemp("prepared")
    prepare(source, data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for the compiled programs of the processes that a module starts."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def run_main(monkeypatch):
    """Runs main.py with flags in this process; returns the line that it ends with if it fails."""
    from absl import flags

    import main
    from dinosr_jax.training import processes

    def run(*given: str) -> str | None:
        monkeypatch.setattr(sys, "argv", ["main.py", *given])
        flags.FLAGS.unparse_flags()
        try:
            main.main(main.parse_flags(sys.argv))
        except SystemExit as end:
            assert isinstance(end.code, str), end.code  # then the exit code is 1
            return end.code
        finally:
            for name in [name for name in flags.FLAGS if name.startswith("config.")]:
                delattr(flags.FLAGS, name)  # it defines the fields that are given

    monkeypatch.setattr(processes, "keep_compiled", lambda folder: None)
    logger = logging.getLogger("dinosr_jax")
    before = logger.handlers[:], logger.level, logger.propagate
    yield run
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def chance() -> random.Random:
    """For moments that are other ones every time; a failure prints the seed that repeats them."""
    seed = int(os.environ.get("DINOSR_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"DINOSR_TEST_SEED={seed} draws the same moments")
    return random.Random(seed)


@pytest.fixture(scope="module")
def compile_quickly():
    """For modules whose time is mostly that of XLA's compiler."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """For modules that load a network again and again: its programs are kept, as a run keeps them.

    In a folder of this module and process, so that nothing else writes it.
    """
    from jax.experimental.compilation_cache import compilation_cache

    kept = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in kept}
    for name, value in kept.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it holds what was set before its first use
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
