"""Executors beside the local one: soups that others evaluate, and Ray."""
