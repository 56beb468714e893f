"""Training loop, checkpoints, loggers."""
