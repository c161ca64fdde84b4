#!/usr/bin/env bash
# Collects 9 hours of recorded speech from Debian packages: bash data/more_speech.sh [PACKAGE...]
#
# Needs apt-get and dpkg-deb (Debian, Ubuntu), no root, and a Python with soundfile (PYTHON, else
# .venv/bin/python). Each package becomes a folder data/more_speech/PACKAGE (OUT names another
# place) of audio files, with transcripts.tsv (file, speaker, language) and its copyright file: the
# licences are yours to read, and nothing of it is part of this repository. What is there is kept.
#
# Left out, because the same recordings would come twice: asterisk-core-sounds-* (data/embedded has
# them) and drascula-italian (its speech is the English one). flight-of-the-amazon-queen is kept
# for evaluation on speakers that no training has heard, and is refused.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
out="${OUT:-$here/more_speech}"
packages=(
  asterisk-prompt-es-co
  asterisk-prompt-fr-armelle
  asterisk-prompt-it-menardi-wav
  drascula
  drascula-spanish
  fillets-ng-data-cs
  fillets-ng-data-nl
  gcin-voice
  klettres-data
  ktuberling-data
  tuxpaint-stamps-default
)

wanted=("${@:-${packages[@]}}")
for package in "${wanted[@]}"; do
  case " ${packages[*]} " in
    *" $package "*) ;;
    *)
      if [ "$package" = flight-of-the-amazon-queen ]; then
        echo "error: $package is kept for evaluation; nothing may train on it." >&2
      else
        echo "error: package $package is unknown; known are ${packages[*]}." >&2
      fi
      exit 2
      ;;
  esac
done

mkdir -p "$out"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
failed=()
for package in "${wanted[@]}"; do
  if [ -e "$out/$package/transcripts.tsv" ]; then continue; fi
  echo "$package ..."
  mkdir "$work/$package"
  if (cd "$work/$package" && apt-get download -qq "$package" && dpkg-deb -x ./*.deb files) \
    && "$python" "$here/more_speech.py" "$package" "$work/$package/files" "$out/$package"; then
    :
  else
    failed+=("$package")
  fi
  rm -rf "${work:?}/$package"
done

"$python" "$here/more_speech.py" summary "$out"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "error: not collected: ${failed[*]}; the reason is above. Run it again for the rest." >&2
  exit 1
fi
