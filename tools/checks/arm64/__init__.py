"""The device install under an emulated aarch64."""
