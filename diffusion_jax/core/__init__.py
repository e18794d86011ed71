"""Basic tools for every room: configs, keys, files and messages, without any model."""
