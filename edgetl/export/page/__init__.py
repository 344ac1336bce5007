"""What is copied into a bundle's `web/` as it stands, and what proves it."""
