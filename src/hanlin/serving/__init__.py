"""Lets people talk to a model."""
