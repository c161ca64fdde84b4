"""Recordings through a network: in batches, or block by block."""
