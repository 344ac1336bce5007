"""torchvision network to a network that can be fine-tuned."""
