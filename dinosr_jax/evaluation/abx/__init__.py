"""ABX: items, features and units for them, distances and scores."""
