"""Evaluation of a bundle on labeled images."""
