# Sourced by the other scripts: makes .venv with what requirements.txt and the arguments name, in the
# versions of constraints.txt.
# PYTHON chooses the interpreter (default python3). Does nothing where nothing has changed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
setup() {
  local python="${PYTHON:-python3}" wanted stamp
  stamp=".venv/.installed$(printf '%s' "$*" | tr -cd 'a-z')"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is $("$python" --version 2>&1 || true); Python 3.11 or later is needed." >&2
    echo "Set PYTHON to another one: PYTHON=python3.12 bash $0" >&2
    return 1
  fi
  wanted="$(cat requirements.txt constraints.txt) $* $("$python" --version)"
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return 0; fi
  echo "Installing into .venv (about a minute, 3 GB) ..."
  if [ "$(.venv/bin/python --version 2>/dev/null)" != "$("$python" --version)" ]; then
    "$python" -m venv --clear .venv
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
    -c constraints.txt "$@"
  printf '%s' "$wanted" > "$stamp"
}
