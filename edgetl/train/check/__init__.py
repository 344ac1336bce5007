"""Data set check before training: `edgetl check`."""
