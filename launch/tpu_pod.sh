#!/usr/bin/env bash
# A TPU slice on Google Cloud: TPU=NAME ZONE=ZONE bash launch/tpu_pod.sh --config=configs/base.py ...
# Runs the same command on every worker, each in FOLDER (default: dinosr_jax in the home folder),
# which has been cloned there and installed:
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
#     git clone REPOSITORY dinosr_jax && cd dinosr_jax && python3 -m venv .venv &&
#     .venv/bin/pip install -r requirements.txt 'jax[tpu]'"
# --workdir and config.data.data_dir must be on a disk that every worker sees (Filestore, NFS).
# After a preemption, run it again on the new slice: it goes on from the last checkpoint.
set -euo pipefail
folder="${FOLDER:-dinosr_jax}"
exec gcloud compute tpus tpu-vm ssh "${TPU:?name of the TPU}" --zone="${ZONE:?its zone}" \
  --worker=all --command="cd $(printf '%q' "$folder") &&
    exec .venv/bin/python main.py --distributed $(printf '%q ' "$@")"
