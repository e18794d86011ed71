"""Saved states: write, check and restore them."""
