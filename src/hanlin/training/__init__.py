"""Training: one loop whose objective is a value, with checkpoints that resume bit for bit."""
