"""Device code: depends on numpy, Pillow and onnxruntime, never on torch."""
