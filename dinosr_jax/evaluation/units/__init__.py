"""What units know of phones, beside those of baselines."""
