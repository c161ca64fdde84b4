#!/usr/bin/env bash
# Nodes with GPUs under SLURM: sbatch launch/slurm.sh --config=configs/base.py [flags of main.py].
# One process a GPU. Two minutes before its time is up, or when it is preempted, the job saves a
# checkpoint and queues itself again; it goes on from there.
#SBATCH --job-name=dinosr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start it with sbatch}"

# lets XLA exchange gradients while it computes others (JAX's GPU performance tips)
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"

# One that dies ends the step; --kill-on-bad-exit does not wait for the others.
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" main.py "$@" --distributed &
step=$!
again=0
trap 'again=1; kill -TERM "$step"' TERM
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ended the wait, not the step
  code=0
  wait "$step" || code=$?
done
if [ "$again" = 1 ] && [ "$code" = 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
