"""Images to a run directory; needs torch."""
