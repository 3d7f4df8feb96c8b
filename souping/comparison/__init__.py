"""Comparison of evaluation logs: paired statistics, verdicts and their pages, without torch and hydra."""
