"""The layout of the package: one direction of imports, one place for every concern."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dinosr_jax"
DRAWING = (ROOT / "docs" / "architecture.md").read_text()


def drawn_rooms(text):
    """Room -> the rooms it may import besides itself: the table of docs/architecture.md.

    A room is a folder: "data" is what lies in data/ itself.
    """
    rows = re.findall(r"^\| `([a-z/_]+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {name: set(re.findall(r"`([a-z/_]+)`", others)) for name, others in rows}


MAY_IMPORT = drawn_rooms(DRAWING)
# these may import everything
FREE = {"cli", "__main__", "__init__"}
MAX_FUNCTION_LINES = 60


@functools.cache
def nodes(text):
    """All nodes of a module's syntax tree."""
    return tuple(ast.walk(ast.parse(text)))


def sources():
    """Dotted name -> text of every module of the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts)] = path.read_text()
    assert len(found) > 25
    return found


def room(module):
    """The folder of a module, or its name if it lies in the package itself."""
    _, *folders, name = module.split(".")
    return "/".join(folders) or name


def top(module):
    return room(module).split("/")[0]


@functools.cache
def imports(module, text):
    """Dotted names of everything that a module imports, at the top or inside a function."""
    names = []
    for node in nodes(text):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def own_imports(module, modules):
    """Modules of the package that a module imports."""
    for name in imports(module, modules[module]):
        if name.split(".")[0] == PACKAGE:
            while name not in modules and f"{name}.__init__" not in modules:
                name = name.rpartition(".")[0]
            yield name if name in modules else f"{name}.__init__"


def upward_imports(modules):
    found = []
    for module in modules:
        for other in own_imports(module, modules):
            here, there = room(module), room(other)
            if here in FREE or there in (here, "__init__"):
                continue
            if there not in MAY_IMPORT.get(here, set()):
                found.append(f"{module} imports {other}")
    return found


def cycle(modules):
    graph = {module: set(own_imports(module, modules)) - {module} for module in modules}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def users(modules, *, of):
    """Modules that import a library, or something of it."""
    named = lambda name: name == of or name.startswith(of + ".")
    return {module for module, text in modules.items() if any(map(named, imports(module, text)))}


def mentions(modules, *, names):
    """Modules in whose code (not in comments or texts) a name occurs."""
    found = set()
    for module, text in modules.items():
        for node in nodes(text):
            fields = (getattr(node, field, None) for field in ("id", "attr", "name"))
            if names & {field for field in fields if isinstance(field, str)}:
                found.add(module)
    return found


def long_functions(modules):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    for module, text in modules.items():
        for node in nodes(text):
            if isinstance(node, kinds) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                yield f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines"


def test_every_room_is_known():
    assert {room(module) for module in sources()} <= MAY_IMPORT.keys() | FREE


def test_imports_go_one_way():
    assert upward_imports(sources()) == []


def test_there_is_no_cycle():
    assert cycle(sources()) is None


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("model.dinosr", "from dinosr_jax.training.step import apply"),
        ("objective.loss", "from dinosr_jax.config import parse"),
        ("objective.loss", "import dinosr_jax.model.layers"),
        ("training.loop", "def f():\n    from dinosr_jax.inference import extract"),
        ("training.loop", "from ..interop import fairseq"),
        ("interop.fairseq", "from dinosr_jax.data import audio"),
        ("data.audio", "from ..training import step"),
        ("data.audio", "from .prepare import sources"),
        ("data.phones.tables", "from dinosr_jax.data.batches import pipeline"),
        ("evaluation.superb.slots", "from dinosr_jax.evaluation.abx import dtw"),
        ("evaluation.abx.dtw", "from ..superb import slots"),
        ("evaluation.comparison", "from dinosr_jax.report.health import signs"),
        ("inference.units.kmeans", "from dinosr_jax.inference.recognition import ngram"),
    ],
)
def test_an_upward_import_is_found(module, text):
    modules = sources() | {f"dinosr_jax.{module}": text}
    (found,) = upward_imports(modules)
    assert found.startswith(f"dinosr_jax.{module} imports dinosr_jax.")


def test_a_cycle_is_found():
    text = "def f():\n    from dinosr_jax.training import loop"
    modules = sources() | {"dinosr_jax.training.metrics": text}
    assert upward_imports(modules) == []
    assert {"dinosr_jax.training.loop", "dinosr_jax.training.metrics"} <= set(cycle(modules))


def test_all_errors_are_for_users():
    """Of a class of its own is what a command tells in one line; the rest are mistakes in here."""
    bases = {
        f"{module}.{node.name}": {getattr(base, "id", "") for base in node.bases}
        for module, text in sources().items()
        for node in nodes(text)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }
    assert len(bases) > 20 and bases.pop("dinosr_jax.errors.UserError") == {"ValueError"}
    assert [name for name, of in bases.items() if "UserError" not in of] == []


def twice(modules):
    """Public classes that two modules define under one name."""
    seen = {}
    for module, text in modules.items():
        for node in nodes(text):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                seen.setdefault(node.name, []).append(module)
    return {name: where for name, where in seen.items() if len(where) > 1}


def test_a_class_has_a_name_of_its_own():
    assert twice(sources()) == {}
    assert twice({"a": "class X: pass", "b": "class X: pass"}) == {"X": ["a", "b"]}


def test_only_data_imports_tensorflow():
    for library in ("tensorflow", "tensorflow_datasets"):
        found = users(sources(), of=library)
        assert found and {top(module) for module in found} == {"data"}


def test_only_sharding_knows_partition_specs():
    names = {"PartitionSpec", "NamedSharding"}
    assert mentions(sources(), names=names) == {"dinosr_jax.training.sharding"}
    modules = {
        "a": "from jax.sharding import PartitionSpec as P",
        "b": "jax.sharding.NamedSharding(m)",
    }
    assert mentions(modules | {"c": "# PartitionSpec"}, names=names) == {"a", "b"}


def test_objective_is_free_of_networks_files_and_meshes():
    allowed = {"jax", "optax", "numpy", "typing", "collections", "functools", "math", PACKAGE}
    for module, text in sources().items():
        if room(module) == "objective":
            assert {name.split(".")[0] for name in imports(module, text)} <= allowed, module
            assert "jax.sharding" not in text


def test_only_cli_knows_command_lines():
    modules = sources()
    assert {room(module) for module in users(modules, of="click")} == {"cli"}
    for library in ("argparse", "absl.flags", "absl.app", "sys.argv"):
        assert users(modules, of=library) == set()


def test_training_and_inference_run_without_tensorflow_and_soundfile():
    loaded = ("inference", "interop", "evaluation", "report")
    script = "\n".join(
        [
            "import sys",
            "blocked = ('tensorflow', 'tensorflow_datasets', 'soundfile', 'librosa')",
            "more = ('torch', 'transformers', 'matplotlib', 'sklearn', 'rapidfuzz')",
            "sys.modules.update(dict.fromkeys((*blocked, *more)))",
            "import dinosr_jax.training.loop",
            *(f"import {module}" for module in sources() if top(module) in loaded),
            "try:",
            "    import tensorflow",
            "except ImportError:",
            "    print('blocked')",
        ]
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.strip() == "blocked", run.stderr


def catch_alls(paths):
    """Files and folders named after no subject; of such names grow drawers for everything."""
    words = {"utils", "util", "utilities", "common", "helpers", "helper", "misc", "tools", "shared"}
    return [path for path in paths if words & set(re.split(r"[/_.]", path))]


def test_files_are_named_after_what_they_hold():
    paths = [module.replace(".", "/") for module in sources()]
    assert catch_alls(paths) == []
    named = ["d/data/audio_utils", "d/common/x", "d/commonly"]
    assert catch_alls(named) == named[:2]


def test_functions_are_short():
    main = (ROOT / "main.py").read_text()
    assert list(long_functions(sources() | {"main": main})) == []
    assert len(main.splitlines()) < 70
    body = lambda n: {"m": "def f():\n" + "    x = 1\n" * n}
    assert list(long_functions(body(60))) == ["m.f: 61 lines"]
    assert list(long_functions(body(59))) == []


def astray(tests, files):
    """Test files that are not named after a file of their folder; an aspect may follow its name."""
    for test in tests:
        words = test.stem.removeprefix("test_").split("_")
        names = {"_".join(words[: n + 1]) for n in range(len(words))}
        if not any(test.parent / f"{name}.py" in files for name in names):
            yield str(test)


def test_tests_lie_where_what_they_test_lies():
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").glob("*/**/test_*.py")]
    assert len(tests) > 100
    files = {path.relative_to(ROOT / PACKAGE) for path in (ROOT / PACKAGE).rglob("*.py")}
    files |= {path.relative_to(ROOT) for path in (ROOT / "benchmarks").glob("*.py")}
    assert list(astray(tests, files)) == []
    assert list(astray([Path("training/test_dtw.py")], files)) == ["training/test_dtw.py"]
    assert list(astray([Path("training/test_loop_at_night.py")], files)) == []


def test_what_is_drawn_is_there():
    """Otherwise docs/architecture.md says little of how things are."""
    modules, used = sources(), {name: set() for name in MAY_IMPORT}
    for module in modules:
        if room(module) not in FREE:
            others = {room(other) for other in own_imports(module, modules)}
            used[room(module)] |= others - FREE - {room(module)}
    assert used == MAY_IMPORT
    named = set(re.findall(r"`((?!tests/)[a-z_]+/[a-z_/]+\.py)`", DRAWING))
    assert len(named) > 10
    assert {path for path in named if not (ROOT / PACKAGE / path).is_file()} == set()
