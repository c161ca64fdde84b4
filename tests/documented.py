"""The commands that README and pages show: those that a test runs as written, and those it cannot.

The names that stand for one's own files (FOLDER, DATA, RUN, ...) are files here.
"""

import csv
import gzip
from pathlib import Path

import soundfile

PROMPTS = 60  # every fifth is tested on, every fifth for validation
RUN = """
python -m dinosr_jax prepare --source=FOLDER --data_dir=DATA
python -m dinosr_jax prepare --source=FOLDER --data_dir=data/prepared/mine
python -m dinosr_jax prepare --source=OTHER --data_dir=data/prepared/other
python main.py --config=configs/base.py --workdir=RUN
python main.py --config=configs/base.py --workdir=runs/base --config.data.data_dir=DIR
python main.py --config=configs/quickstart.py --workdir=runs/mine \
--config.data.data_dir=data/prepared/mine \
--config.data.train_split='train[:95%]' --config.data.eval_split='train[95%:]'
python main.py --config=configs/quickstart.py --workdir=runs/mixture \
--config.data.data_dir=data/prepared --config.data.mixture="(('mine', 1.0), ('other', 2.0))" \
--config.data.eval_data_dir=data/prepared/mine --config.data.eval_dataset=audio_folder \
--config.data.train_split='train[:95%]' --config.data.eval_split='train[95%:]'
python -m dinosr_jax extract runs/mine FOLDER --layer=3 --output=features
python -m dinosr_jax units runs/mine FOLDER --layer=3 --output=units.jsonl
python -m dinosr_jax extract CHECKPOINT INPUT --layer=5 --output=features
python -m dinosr_jax extract RUN INPUT --layer=5 --output=features
python -m dinosr_jax units CHECKPOINT INPUT --layer=5 --source=kmeans --kmeans=km.npz --fit \
--num_clusters=500
python -m dinosr_jax units CHECKPOINT INPUT --layer=5 --source=kmeans --kmeans=km.npz \
--output=units.jsonl
python -m dinosr_jax units CHECKPOINT INPUT --layer=5 --output=units.jsonl
python -m dinosr_jax units RUN INPUT --layer=5 --output=units.jsonl
python -m dinosr_jax evaluate units units.jsonl --alignment=ALIGNMENT \
--output=RUN/evaluation/units.json
python -m dinosr_jax evaluate items ALIGNMENT --speakers=DATA --split=test --output=triphones.item
python -m dinosr_jax evaluate abx features --item=triphones.item
python -m dinosr_jax evaluate abx features --item=triphones.item --output=RUN/evaluation/abx.json
python -m dinosr_jax evaluate frames RUN DATA --split=test
python -m dinosr_jax evaluate run RUN DATA --split=test
python -m dinosr_jax report RUN
python main.py --config=configs/finetune_10h.py --config.init=RUN
python -m dinosr_jax transcribe runs/finetune_10h INPUT --output=hyp.jsonl
python -m dinosr_jax ngram DATA --split=train --output=lm.arpa
python -m dinosr_jax transcribe runs/finetune_10h INPUT --output=hyp.jsonl --lm=4-gram.arpa.gz \
--lexicon=librispeech_lexicon.lst
python -m dinosr_jax export runs/finetune_10h --format=huggingface --output=hf
python -m dinosr_jax export RUN --format=huggingface --output=hf
python -m dinosr_jax import dinosr.ckpt --output=runs/official
python -m dinosr_jax export runs/official --format=huggingface --output=hf
python -m dinosr_jax scale --config=configs/base.py --devices=4
""".strip().splitlines()
# Patterns of the others, with the tests that run such commands on data made up there.
CHECKED_ONLY = {
    r"prepare --dataset=librispeech": "tests/data/prepare/test_librispeech.py",
    r"prepare --source=librispeech_finetuning": "tests/data/prepare/test_librilight.py",
    r"compile --config=configs/base.py": "tests/training/planning/test_tpu_compile.py",
    r"evaluate (keywords|intent|slots|asr|recognition) ": "tests/evaluation/superb/test_systems.py",
    r"sweep .* --split=dev_other": "tests/inference/recognition/test_sweep.py",
    r"transcribe .* --settings=best.json": "tests/inference/recognition/test_transcribe.py",
    r"evaluate wer .*librispeech --split=test_other": "tests/training/ctc/test_word_errors.py",
    r"main.py --config=runs/official/config.py": "tests/interop/test_runs.py",
    r"main.py --config=configs/base.py --workdir=runs/base$": "the same with DIR is run",
    r"main.py --config=configs/base.py$": "the same with a workdir is run",
    r"evaluate run RUN$": "the same with DATA is run",
    r"dinosr_jax COMMAND --help": "a placeholder",
}

_SMALL = """
import runpy

def get_config():
    config = runpy.run_path({tiny!r})["get_config"]()
    config.num_steps = 2
    config.eval_steps = config.checkpoint_steps = 2
    config.model.num_layers, config.model.num_codebooks = 5, 3
    config.data.data_dir = "DATA"
    config.data.batch_multiple = 8
    config.data.max_rungs = 1
    config.data.max_batch_seconds = 32.0
    {more}
    return config
"""
_FINE_TUNED = """config.task, config.workdir = "ctc", "runs/finetune_10h"
    config.data.max_seconds = 10.0
    config.data.max_batch_seconds = 64.0
    config.data.batch_multiple = 8"""


def write_checkout(folder: Path, *, root: Path) -> None:
    """Writes small configurations, recordings with texts and phones, and the names for them."""
    (folder / "configs").mkdir()
    tiny = str(root / "configs/tiny.py")
    for name, more in (("base", ""), ("quickstart", ""), ("finetune_10h", _FINE_TUNED)):
        text = _SMALL.format(tiny=tiny, more=more)
        (folder / f"configs/{name}.py").write_text(text)
    write_recordings(folder / "FOLDER", root / "data/embedded")
    (folder / "data/prepared").mkdir(parents=True)
    (folder / "runs").mkdir()
    for name, there in {
        "INPUT": "FOLDER",
        "ALIGNMENT": "FOLDER/phones.tsv",
        "DIR": "DATA",
        "CHECKPOINT": "RUN",
        "runs/quickstart": "../RUN",
        "OTHER": "FOLDER",
        "dinosr.ckpt": root / "tests/golden/tiny_fairseq.pt",
    }.items():
        (folder / name).symlink_to(there)
    arpa = (root / "tests/golden/trigram.arpa").read_bytes()
    (folder / "4-gram.arpa.gz").write_bytes(gzip.compress(arpa, mtime=0))
    unigrams = arpa.decode().split("\\1-grams:")[1].split("\\2-grams:")[0].splitlines()
    words = [line.split("\t")[1] for line in unigrams if line and "<" not in line]
    lexicon = "".join(f"{word}\t{' '.join(word)} |\n" for word in words)
    (folder / "librispeech_lexicon.lst").write_text(lexicon)


def write_recordings(folder: Path, embedded: Path) -> None:
    """Short English prompts as FLAC, with transcripts.tsv and phones.tsv."""
    folder.mkdir()
    read = lambda name: csv.DictReader(
        (embedded / name).read_text(encoding="utf-8").splitlines(), delimiter="\t", quoting=3
    )
    rows = [row for row in read("index.tsv") if row["language"] == "en"]
    rows = [row for row in rows if 20_000 <= int(row["num_samples"]) <= 48_000][:PROMPTS]
    lines = ["file\ttext\tspeaker\tlanguage\tsplit"]
    for place, row in enumerate(rows):
        start, length = int(row["start_sample"]), int(row["num_samples"])
        audio, rate = soundfile.read(embedded / row["shard"], start=start, frames=length)
        soundfile.write(folder / f"{row['file'].replace('/', '_')}.flac", audio, rate)
        split = {0: "validation", 1: "test"}.get(place % 5, "train")
        name = row["file"].replace("/", "_")
        lines.append(f"{name}.flac\t{row['text']}\tallison\ten\t{split}")
    (folder / "transcripts.tsv").write_text("\n".join(lines) + "\n")
    names = {row["file"] for row in rows}
    phones = ["\t".join(("file", "start_s", "end_s", "phone"))]
    for row in read("phones_en.tsv"):
        if row["file"] in names:
            row["file"] = row["file"].replace("/", "_")
            phones.append("\t".join(row.values()))
    (folder / "phones.tsv").write_text("\n".join(phones) + "\n")
