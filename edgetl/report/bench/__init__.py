"""Report of benchmark results."""
