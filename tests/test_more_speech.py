"""data/more_speech.sh on packages made up here: what is speech, who speaks, and what is refused."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[1]
DRASCULA = "usr/share/scummvm/drascula"
FILLETS = "usr/share/games/fillets-ng/sound"
APT = """#!/usr/bin/env bash
[ -e "$PACKAGES/$3" ] || { echo "E: Unable to locate package $3" >&2; exit 100; }
echo "$3" > "$3_1.deb"; echo "$3" >> "$PACKAGES/downloaded"
"""
DPKG = """#!/usr/bin/env bash
cp -a "$PACKAGES/$(cat "$2")" "$3"
"""


def voice(path: Path, kind: str, *, key: int) -> None:
    """Half a second of noise as a package would hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.Generator(np.random.Philox(key=key)).integers(0, 256, 5_600)
    if kind == "raw":
        path.write_bytes(noise.astype(np.uint8).tobytes())
    elif kind == "gsm":
        options = {"format": "RAW", "subtype": "GSM610"}
        soundfile.write(path, noise.astype(np.int16) * 50, 8_000, **options)
    else:
        soundfile.write(path, noise / 256, 16_000)


@pytest.fixture
def packages(tmp_path) -> Path:
    folder = tmp_path / "packages"
    contents = {
        "drascula": {f"{DRASCULA}/en/{name}.ALS": "raw" for name in ("1", "BJ2", "S3", "20")},
        "drascula-spanish": {f"{DRASCULA}/es/{name}.ALS": "raw" for name in ("1", "20", "D4")},
        "asterisk-prompt-es-co": {"usr/share/asterisk/sounds/es/hola.gsm": "gsm"},
        "fillets-ng-data-cs": {
            f"{FILLETS}/cave/cs/jes-m-netopyr.ogg": "ogg",
            f"{FILLETS}/gods/cs/b1-1.ogg": "ogg",
        },
        "klettres-data": {
            "usr/share/klettres/en_GB/alpha/a.ogg": "ogg",
            "usr/share/klettres/ml/syllab/ka.ogg": "ogg",
            "usr/share/klettres/pics/x.wav": "none",
        },
        "ktuberling-data": {
            "usr/share/ktuberling/sounds/sr@latin/pas.wav": "wav",
            "usr/share/ktuberling/sounds/effect.wav": "wav",
        },
        "tuxpaint-stamps-default": {
            f"usr/share/tuxpaint/stamps/{name}.ogg": "ogg"
            for name in ("dog", "dog_desc", "dog_desc_fr", "cat_desc_fr")
        },
    }
    key = 0
    for package, files in contents.items():
        documents = folder / package / "usr/share/doc" / package
        documents.mkdir(parents=True)
        (documents / "copyright").write_text(f"licence of {package}\n")
        for name, kind in files.items():
            if kind != "none":
                voice(folder / package / name, kind, key=(key := key + 1))
    (folder / "drascula-spanish" / DRASCULA / "es/366.ALS").symlink_to("/nowhere/366.ALS")
    stamps = folder / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    (stamps / "again_desc_fr.ogg").write_bytes((stamps / "dog_desc_fr.ogg").read_bytes())
    return folder


@pytest.fixture
def collect(tmp_path, packages):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PACKAGES": str(packages),
        "OUT": str(tmp_path / "out"),
    }

    def run(*names, expect=0):
        command = ["bash", "data/more_speech.sh", *names]
        options = {"capture_output": True, "text": True, "env": environment, "timeout": 100}
        done = subprocess.run(command, cwd=ROOT, **options)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def table(folder: Path) -> dict[str, tuple[str, str]]:
    with open(folder / "transcripts.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    held = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("transcripts.tsv", "copyright")
    }
    assert held == {row["file"] for row in rows}
    return {row["file"]: (row["speaker"], row["language"]) for row in rows}


def test_every_recording_has_its_speaker_and_language(collect, tmp_path, packages):
    names = sorted(path.name for path in packages.iterdir())
    message = collect(*names)
    out = tmp_path / "out"
    assert table(out / "drascula") == {
        "1.wav": ("drascula-en-hero", "en"),
        "20.wav": ("drascula-en-hero", "en"),
        "BJ2.wav": ("drascula-en-BJ", "en"),
    }
    assert table(out / "drascula-spanish") == {  # no English in it
        "1.wav": ("drascula-es-hero", "es"),
        "D4.wav": ("drascula-es-D", "es"),
    }
    assert table(out / "fillets-ng-data-cs") == {
        "cave/cs/jes-m-netopyr.ogg": ("fillets-cs-m", "cs"),
        "gods/cs/b1-1.ogg": ("fillets-cs-gods", "cs"),
    }
    assert table(out / "klettres-data") == {
        "en_GB/alpha/a.ogg": ("klettres-en_GB", "en"),
        "ml/syllab/ka.ogg": ("klettres-ml", "ml"),
    }
    spoken = table(out / "ktuberling-data")
    assert spoken == {"sr@latin/pas.wav": ("ktuberling-sr@latin", "sr")}
    found = table(out / "tuxpaint-stamps-default")
    assert found.pop("dog_desc.ogg") == ("tuxpaint-en", "en") and len(found) == 2  # none twice
    assert set(found.values()) == {("tuxpaint-fr", "fr")}
    samples, rate = soundfile.read(out / "drascula/BJ2.wav", dtype="int16")
    raw = np.fromfile(packages / "drascula" / DRASCULA / "en/BJ2.ALS", np.uint8)[32:-32]
    assert rate == 11_025
    np.testing.assert_array_equal(samples, (raw.astype(np.int16) - 128) * 256)
    assert soundfile.info(out / "asterisk-prompt-es-co/es/hola.wav").samplerate == 8_000
    for name in names:
        assert f"{name}: " in message and f"licence: {out / name / 'copyright'}" in message
        assert (out / name / "copyright").read_text() == f"licence of {name}\n"


def test_what_is_there_is_kept_and_what_failed_is_got_later(collect, packages, tmp_path):
    (packages / "drascula").rename(packages / "away")
    message = collect("drascula", "klettres-data", expect=1)
    assert "error: not collected: drascula" in message and "Unable to locate" in message
    assert not (tmp_path / "out/drascula").exists() and table(tmp_path / "out/klettres-data")
    (packages / "away").rename(packages / "drascula")
    collect("drascula", "klettres-data")
    assert (packages / "downloaded").read_text().split() == ["klettres-data", "drascula"]


@pytest.mark.parametrize("package", ["flight-of-the-amazon-queen", "nethack"])
def test_other_packages_are_refused(collect, package, tmp_path):
    message = collect("klettres-data", package, expect=2)
    assert package in message and ("evaluation" in message) == (package != "nethack")
    assert not (tmp_path / "out").exists()


def test_a_package_without_what_is_expected_is_said(collect, packages, tmp_path):
    for path in (packages / "klettres-data").rglob("*.ogg"):
        path.unlink()
    message = collect("klettres-data", expect=1)
    assert "no recordings where they are expected" in message
    assert not (tmp_path / "out/klettres-data").exists()
