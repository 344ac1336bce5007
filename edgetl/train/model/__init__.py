"""Models: architectures and their sources, weights, heads and freezing."""
