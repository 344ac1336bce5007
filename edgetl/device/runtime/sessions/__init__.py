"""Sessions of runtimes other than ONNX Runtime."""
