"""The networks (flax.linen): pure functions of parameters and arrays, unaware of training."""
