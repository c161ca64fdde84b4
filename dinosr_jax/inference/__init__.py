"""What people take away from a checkpoint: features and discrete units."""
