"""Page shell and building blocks."""
