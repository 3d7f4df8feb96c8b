"""Merging of checkpoints: plans, their execution, and live modules that become soups."""

ERROR, WARNING = "souping.merge: error: ", "souping.merge: warning: "
"""How lines on standard error of `python -m souping.merge` begin; `merge=accelerate` reads those of its ranks."""
