"""Validate edgetl on a machine with a GPU: `python -m tools.checks.gpu_check`."""
