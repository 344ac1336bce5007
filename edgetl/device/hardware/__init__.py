"""Read the device's hardware, state, energy and noise."""
