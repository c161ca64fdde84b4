"""constraints.txt: a version of every requirement, that the requirement allows."""

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def lines(path):
    text = (ROOT / path).read_text()
    return [line.partition("#")[0].strip() for line in text.splitlines() if line.strip()]


def pinned():
    found = {}
    for line in filter(None, lines("constraints.txt")):
        name, equal, version = line.partition("==")
        assert equal and re.fullmatch(r"[\w.]+", version), line
        found[name.lower()] = version
    return found


def test_every_requirement_has_a_version_that_it_allows():
    versions = pinned()
    wanted = [Requirement(line) for line in filter(None, lines("requirements.txt"))]
    script = (ROOT / "launch/test.sh").read_text()
    wanted += [Requirement(text) for text in re.findall(r'"([\w-]+[<>=]+[\d.*]+)[";]', script)]
    assert len(wanted) > 25
    for requirement in wanted:
        if requirement.name not in ("fastabx", "discophon"):  # of Python 3.12 and PEERS=1 alone
            assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement


def test_ruff_is_one_version():
    (hook,) = re.findall(r"rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hook == pinned()["ruff"]
