"""A run: its parts, its folder, and the start and stop of programs on it."""
