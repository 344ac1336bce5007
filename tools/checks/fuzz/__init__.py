"""Fuzzing of all file formats that edgetl reads, one target per format."""
