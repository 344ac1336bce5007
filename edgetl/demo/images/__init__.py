"""Synthetic inspection images: metal parts, good or with one of four defects."""
