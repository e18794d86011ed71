"""Saved states: written, checked and restored."""
