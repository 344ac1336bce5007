"""Latency benchmark: gates on golden images, warm-up, randomized rounds, intervals, noise record.

Nothing is imported here: worker processes start from this package and time their own imports.
"""
