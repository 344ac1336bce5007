"""PyTorch to a verified ONNX bundle."""
