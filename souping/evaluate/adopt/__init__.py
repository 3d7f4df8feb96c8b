"""Answers that were measured elsewhere, held against the run that would measure them again, and taken over."""
