"""Selectors: which candidates become ingredients, and why."""
