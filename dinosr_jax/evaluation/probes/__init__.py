"""What is learnt on frozen features: frame classifiers, and heads of all tasks."""
