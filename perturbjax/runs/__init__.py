"""A run directory: identity, atomic files, checkpoints, metrics, progress, compile cache."""
