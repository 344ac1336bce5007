"""Programs that measure edgetl."""
