"""A training run, from its set-up to its last saved step."""
