"""A trained run's weights restored, and images drawn from them."""
