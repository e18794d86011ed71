"""A run: what it is made of, its folder, and how a program on it starts and stops."""
