"""SUPERB's tasks on frozen features."""
