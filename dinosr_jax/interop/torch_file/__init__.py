"""PyTorch's files, read and written without torch."""
