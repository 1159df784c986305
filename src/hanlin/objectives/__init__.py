"""Objectives: what a model is asked to become, as arithmetic on log-probabilities of scored tokens."""
