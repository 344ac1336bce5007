"""Proof that ONNX equals PyTorch."""
