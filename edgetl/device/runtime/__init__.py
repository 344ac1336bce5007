"""Load a bundle and run it with ONNX Runtime."""
