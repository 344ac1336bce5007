"""Quantization to smaller variants: fp16 and int8."""
