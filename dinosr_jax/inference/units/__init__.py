"""Discrete units of recordings: computed, written, read and described."""
