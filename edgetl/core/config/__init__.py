"""One frozen, validated dataclass per command: the single source of defaults and ranges."""
