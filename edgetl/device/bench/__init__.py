"""Latency, measured by a protocol: own processes, golden gate, warm-up to steadiness, randomised rounds, intervals, noise record.

Nothing is imported here: a worker process starts by this package's name and times its own imports.
"""
