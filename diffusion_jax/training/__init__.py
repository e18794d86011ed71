"""A training step and what belongs to it: its state, averages, throughput and log."""
