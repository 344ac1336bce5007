"""Runs on the target device: numpy, Pillow and onnxruntime, never torch."""
