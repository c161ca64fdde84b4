"""From records to batches: the plans, and tf.data, which follows them."""
