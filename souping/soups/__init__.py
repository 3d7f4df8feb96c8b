"""Soups: the models of a pool, written, served, merged by given weights, and uploaded."""
