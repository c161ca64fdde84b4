#!/usr/bin/env bash
# One node with GPUs: bash launch/gpu_node.sh --config=configs/base.py [flags of main.py].
# One process drives all GPUs. PROCESSES=8 starts one a GPU, each of which decodes its own part of
# the batches. SIGTERM or Ctrl-C saves a checkpoint; the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
processes="${PROCESSES:-1}"

# lets XLA exchange gradients while it computes others (JAX's GPU performance tips)
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
# jax takes 75 % of a GPU's memory unless told otherwise; the rest is for NCCL and cuDNN
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"

if [ "$processes" = 1 ]; then exec "$python" main.py "$@"; fi
port="${PORT:-$((20000 + RANDOM % 10000))}"
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < processes; i++)); do
  CUDA_VISIBLE_DEVICES="$i" "$python" main.py "$@" --distributed \
    --coordinator="localhost:$port" --num_processes="$processes" --process_id="$i" &
  pids+=("$!")
done
status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal ended the wait, not the process
    code=0
    wait "$pid" || code=$?
  done
  if [ "$code" != 0 ]; then status="$code"; fi
done
exit "$status"
