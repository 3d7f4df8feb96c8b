"""Nouns of souping, which every other part speaks of, and the error that a user can mend."""

from souping.core.types import (
    FOLDS,
    Candidate,
    Correlations,
    FloatArray,
    Fold,
    Item,
    ItemScores,
    LateError,
    Recipe,
    Record,
    Result,
    Selection,
    Trial,
    UserError,
    Weights,
    digest,
)

__all__ = [
    "FOLDS",
    "Candidate",
    "Correlations",
    "FloatArray",
    "Fold",
    "Item",
    "ItemScores",
    "LateError",
    "Recipe",
    "Record",
    "Result",
    "Selection",
    "Trial",
    "UserError",
    "Weights",
    "digest",
]
