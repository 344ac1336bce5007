"""Stand-alone clients that are copied into every bundle."""
