"""Conversion of the network to the formats of other runtimes."""
