#!/usr/bin/env bash
# From nothing to a trained network, its features, units and report: bash launch/quickstart.sh [flags].
# Flags go to main.py (--config.num_steps=1000). Run it again and it goes on where it stopped.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup

data=data/prepared/embedded
run=runs/quickstart
for flag in "$@"; do
  case "$flag" in --workdir=*) run="${flag#--workdir=}" ;; esac
done
python=.venv/bin/python
# What the steps compile is found again the next time, as that of main.py is.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$run/compiled/$(uname -n)}"

$python -m dinosr_jax prepare --source=data/embedded --data_dir=$data
$python main.py --config=configs/quickstart.py --workdir="$run" "$@"
layer=$($python -c "
import json
model = json.load(open('$run/config.json'))['model']
print(model['num_layers'] - model['num_codebooks'] + 1)")
$python -m dinosr_jax extract "$run" $data --split=test --layer="$layer" --output="$run/features"
$python -m dinosr_jax units "$run" $data --split=test --layer="$layer" --output="$run/units.jsonl"
$python -m dinosr_jax evaluate run "$run" $data --split=test --task=units,frames
$python -m dinosr_jax report "$run"

cat <<TEXT

Done. In $run:
  checkpoints/   the network; it goes on from here: bash launch/quickstart.sh --config.num_steps=N
  curves.png     loss, accuracy, perplexity, ... ; metrics.jsonl the same as numbers;
                 events/ for TensorBoard
  features/      layer $layer of the test split, one .npy an utterance, 50 frames a second
  units.jsonl    its discrete units, the machine-discovered phones of the test split
  evaluation/    unit quality and frame accuracy, beside MFCC and the untrained network
  report/        report.html, to look at: open it in a browser
Next: your own recordings.
  $python -m dinosr_jax prepare --source=FOLDER --data_dir=data/prepared/mine
  $python main.py --config=configs/quickstart.py --workdir=runs/mine \\
    --config.data.data_dir=data/prepared/mine \\
    --config.data.train_split='train[:95%]' --config.data.eval_split='train[95%:]'
TEXT
