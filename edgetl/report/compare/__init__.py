"""Report of an experiment."""
