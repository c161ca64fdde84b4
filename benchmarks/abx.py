"""ABX beside fastabx: the same items and features, each side in a process of its own, in turn.

    python benchmarks/abx.py --source=FOLDER --python=PYTHON_WITH_FASTABX

FOLDER has an index.tsv (file, speaker) and a phones.tsv (file, start_s, end_s, phone). Features are
made of the phones: a centre for every phone, another for every speaker, and noise. fastabx needs
Python 3.12; PYTHON may be another environment's. The first round of either side is not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

TASKS = {
    "triphone within": ("triphone", "within", "triphone", None, None),
    "triphone across": ("triphone", "across", "triphone", None, None),
    "any within, 10": ("phoneme", "within", "any", 10, 5),
    "any across, 10 and 5": ("phoneme", "across", "any", 10, 5),
}
OURS = """
import json, sys, time
start = time.perf_counter(), time.process_time()
item, folder, speaker, context, group, across = json.loads(sys.argv[1])
from dinosr_jax.evaluation.abx import item_features, items, scoring
read = items.read_items(item)
(source,) = item_features.open_features(folder)
gathered = item_features.gather(source, read, distance="angular")
caps = scoring.Caps(group, across)
task = {"speaker": speaker, "context": context, "distance": "angular", "caps": caps}
error = scoring.measure(gathered, read, **task).error
print(json.dumps([error, time.perf_counter() - start[0], time.process_time() - start[1]]))
"""
THEIRS = """
import json, sys, time
start = time.perf_counter(), time.process_time()
item, folder, speaker, context, group, across = json.loads(sys.argv[1])
import numpy, torch
from fastabx import zerospeech_abx
error = zerospeech_abx(
    item, folder, max_size_group=group, max_x_across=across, speaker=speaker,
    context={"triphone": "within"}.get(context, context), extension=".npy", progress=False,
    feature_maker=lambda path: torch.from_numpy(numpy.load(path)),
)
print(json.dumps([error, time.perf_counter() - start[0], time.process_time() - start[1]]))
"""


def write_data(source: Path, folder: Path, *, width: int) -> int:
    """Item files and features; returns how many triphones."""
    from dinosr_jax.data.phones.alignments import read_alignment
    from dinosr_jax.data.phones.phones import frame_labels
    from dinosr_jax.evaluation.abx.items import make_items, read_speakers, write_items

    random = np.random.default_rng(0)
    utterances = read_alignment(source / "phones.tsv").utterances
    speakers = read_speakers(source / "index.tsv")
    count = 0
    for context in ("triphone", "phoneme"):
        made = make_items(utterances, speakers, context=context)
        # fastabx has no way to leave out what is shorter than a frame
        long = [i for i in range(len(made)) if made.offsets[i] - made.onsets[i] > 1 / 50]
        count = count or len(long)
        write_items(folder / f"{context}.item", made.take(long))
    centres: dict[str, np.ndarray] = {}
    centre = lambda name: centres.setdefault(name, random.normal(size=width))
    (folder / "features").mkdir()
    for id_, phones in utterances.items():
        frames = int(phones[-1].end * 50) + 2
        labels = frame_labels(phones, num_frames=frames, step=0.02)
        x = np.stack([centre(label) for label in labels]) + centre("speaker " + speakers[id_])
        x += 2 * random.normal(size=x.shape)
        np.save(folder / "features" / f"{id_}.npy", x.astype(np.float32))
    return count


def run(python: str, script: str, task: list) -> tuple[float, float, float]:
    """(Error, wall, CPU seconds), imports included."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} if script is OURS else None
    command = [python, "-c", script, json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {python}\n{done.stderr[-2000:]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Times both sides in turn and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="of fastabx")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(TASKS))
    arguments = parser.parse_args()
    chosen = [name for name in TASKS if name in arguments.tasks]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = write_data(arguments.source, folder, width=arguments.width)
        print(f"{count} triphones, {arguments.width} numbers a frame; seconds with imports")
        print(f"{'task':22}{'ours':>8}{'fastabx':>9}{'ratio':>7}{'CPU':>7}{'errors':>18}")
        for name in chosen:
            item, speaker, context, *caps = TASKS[name]
            task = [str(folder / f"{item}.item"), str(folder / "features"), speaker, context, *caps]
            sides = {"ours": (sys.executable, OURS), "fastabx": (arguments.python, THEIRS)}
            found = {side: [] for side in sides}
            for _ in range(arguments.rounds + 1):
                for side, (python, script) in sides.items():
                    found[side].append(run(python, script, task))
            ours, theirs = (np.median(found[side][1:], axis=0) for side in sides)
            ratio, cpu = theirs[1] / ours[1], theirs[2] / ours[2]
            print(
                f"{name:22}{ours[1]:8.2f}{theirs[1]:9.2f}{ratio:7.2f}{cpu:7.2f}"
                f"{ours[0]:10.4%}{theirs[0]:8.4%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
