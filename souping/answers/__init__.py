"""Answers of recipes: evaluated once, stored, and shown as counted looks."""
