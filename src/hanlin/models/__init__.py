"""Models: one decoder driven by `ModelConfig`, the names other layouts give its parts, and how weights are read and
written.
"""
