"""ONNX graph construction."""
