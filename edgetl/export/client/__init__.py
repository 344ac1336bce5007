"""Stand-alone clients, copied into every bundle."""
