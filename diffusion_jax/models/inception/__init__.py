"""The Inception network of the FID, and its published weights."""
