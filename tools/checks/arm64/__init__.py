"""Checks of the device install on emulated aarch64."""
