"""What `prepare` does: sources are read, checked and written as records."""
