"""Confidence of a variant's predictions: calibration, unknown images and prediction sets."""
