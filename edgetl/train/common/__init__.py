"""Code shared by the other training packages."""
