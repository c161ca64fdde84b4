"""What a network has learnt, measured: on arrays and files, never on a training run."""
