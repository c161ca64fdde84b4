#!/usr/bin/env bash
# All figures of one NVIDIA GPU in ten minutes: bash benchmarks/gpu.sh [--minutes=9] [--output=DIR].
# --rehearse runs every part at tiny shapes on the CPU. Needs jax, flax, optax, orbax, and for the
# peer torch and transformers; benchmarks/gpu.py says more. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
