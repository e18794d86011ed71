"""Restore a trained run's weights and draw images from them."""
