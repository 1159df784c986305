"""Evaluation: what a model's answers are like, before and after, with intervals. Never imports training or serving."""
