#!/usr/bin/env bash
# Lint, format and tests: bash launch/test.sh [pytest arguments].
# SLOW=1 runs the tests that are marked slow, too, and SLOW=2 those that are marked very slow.
# TORCH=1 installs PyTorch and transformers, for the tests of exports against them.
# PEERS=1 installs fastabx and discophon as well, for the tests of ABX and of unit quality against
# them; they need Python 3.12: PYTHON=python3.12 TORCH=1 PEERS=1 bash launch/test.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup "pytest>=8" "pytest-xdist>=3.8" "ruff>=0.12" "flashlight-text>=0.0.7; python_version < '3.13'" \
  "ufal-flashlight-text>=0.0.7.1; python_version >= '3.13'" "nbclient>=0.10" "ipykernel>=6" \
  ${TORCH:+"torch==2.13.*" "transformers>=5"} ${PEERS:+"fastabx==0.9.*" "discophon==0.2.*"}

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
case "${SLOW:-0}" in
  0) marks="not slow and not very_slow" ;;
  1) marks="not very_slow" ;;
  *) marks="" ;;
esac
# A file is one process's: its fixtures are computed once. tests/conftest.py says which come first.
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
  -m "$marks" "$@"
