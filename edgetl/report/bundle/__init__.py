"""Report of a bundle."""
