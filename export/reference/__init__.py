"""Plain NumPy references: the slow truth, with the checkpoint's own names and nothing folded."""
