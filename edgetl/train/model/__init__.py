"""Models: torchvision architectures, weights, heads and freezing."""
