"""Smaller variants: fp16 and int8."""
