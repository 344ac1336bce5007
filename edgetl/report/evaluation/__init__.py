"""Page of an evaluation."""
