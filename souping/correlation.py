"""Correlation of categories over models, with 95 % intervals. scores [M, C] -> rho, low, high [C, C]."""

from __future__ import annotations

from collections.abc import Sequence

from souping.core import Correlation, Correlations, FloatArray


def check_columns(scores: FloatArray, names: Sequence[str] = ()) -> None:
    """UserError that names constant columns (by `names` where given, else by number), too few models or categories."""
    raise NotImplementedError


def pearson(scores: FloatArray) -> Correlations:
    """Pearson's r; Fisher's z interval (nan below 4 models)."""
    raise NotImplementedError


def spearman(scores: FloatArray) -> Correlations:
    """Spearman's rank correlation; Bonett-Wright interval (nan below 4 models)."""
    raise NotImplementedError


def kendall(scores: FloatArray) -> Correlations:
    """Kendall's tau-b; Fieller interval (nan below 5 models)."""
    raise NotImplementedError


CORRELATIONS: dict[str, Correlation] = {"pearson": pearson, "spearman": spearman, "kendall": kendall}
