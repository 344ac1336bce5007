"""Data sets: split, decode, augment and load images in batches."""
