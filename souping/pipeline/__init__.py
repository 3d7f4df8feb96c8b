"""A run: its steps, the store of answers, evaluation through it, and the evidence."""
