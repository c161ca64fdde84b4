#!/usr/bin/env bash
# Lint, format and tests: bash launch/test.sh [pytest arguments].
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup "pytest>=8" "ruff>=0.12"

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m pytest "$@"
