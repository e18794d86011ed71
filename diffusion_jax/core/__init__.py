"""Ground that every room stands on: configs, keys, files and words, without a model in sight."""
