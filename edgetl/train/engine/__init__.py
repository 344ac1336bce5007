"""Training engine: phases, optimization, evaluation, checkpoints."""
