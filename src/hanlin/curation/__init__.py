"""Curation: rows in, better rows and an account of every decision out. Never imports torch."""
