"""Nouns, protocols, values and files that every other room uses."""
