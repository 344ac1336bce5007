"""PNG plots of a run."""
