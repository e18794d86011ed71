"""Read the weights of other libraries as runs, and write runs for other libraries."""
