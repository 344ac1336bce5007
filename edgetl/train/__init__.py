"""Fine-tuning; requires torch."""
