"""A run as a page: reads files that others have written, and computes nothing else."""
