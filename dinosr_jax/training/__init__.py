"""The training run: state, step, mesh, checkpoints, metrics, loop."""
