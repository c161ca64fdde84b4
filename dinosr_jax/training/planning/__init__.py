"""Before a run: whether it fits a device, how fast it can be, other devices."""
