"""Analyses of a run: each is a file here, which computes and shows it, and a choice of `analysis`."""

from souping.analysis.base import Analysis, NotEstimableError, RunScores, RunSoups

__all__ = ["Analysis", "NotEstimableError", "RunScores", "RunSoups"]
