"""The method: masks, targets, codebooks, loss. Pure functions on arrays."""
