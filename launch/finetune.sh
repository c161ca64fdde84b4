#!/usr/bin/env bash
# After launch/quickstart.sh: what pre-training is worth for recognition, on 12 minutes of English.
# Fine-tunes the quickstart's network, and the same network from random parameters, as long; then
# transcribes the test split, greedily and with a bigram of the training transcripts.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup "flashlight-text>=0.0.7; python_version < '3.13'" \
  "ufal-flashlight-text>=0.0.7.1; python_version >= '3.13'"

data=data/prepared/embedded
python=.venv/bin/python
config=configs/finetune_quickstart.py
$python main.py --config=$config --config.init=runs/quickstart --workdir=runs/finetuned "$@"
$python main.py --config=$config --workdir=runs/finetuned_random "$@"
$python -m dinosr_jax ngram $data --split=train --language=en --output=runs/english.arpa

for run in runs/finetuned runs/finetuned_random; do
  $python -m dinosr_jax transcribe $run $data --split=test --output=$run/greedy.jsonl
  $python -m dinosr_jax sweep $run $data --split=validation --language=en --lm=runs/english.arpa \
    --beam=100 --trials=30 --output=$run/weights.json
  $python -m dinosr_jax transcribe $run $data --split=test --settings=$run/weights.json \
    --output=$run/bigram.jsonl
  for decoder in greedy bigram; do
    printf '%s, %s: ' $run $decoder
    $python -m dinosr_jax evaluate wer $run/$decoder.jsonl --reference=$data --split=test \
      --language=en --worst=3 --output=$run/$decoder.wer.json
  done
done
