"""Code that the other training packages share."""
