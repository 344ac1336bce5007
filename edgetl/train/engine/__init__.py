"""The training procedure."""
