"""Folder of images to batches."""
