"""The training step and its parts: state, averages, optimizers, throughput and log."""
