"""Answers that other models gave to the same items: drafts for a soup to verify, and references for it to read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from souping.core.protocols import Evaluator
from souping.core.types import Draft, Item, Json, Recipe, digest
from souping.pipeline.store import Store

MOST = 8
"""Drafts of an item."""
NEAR = 0.1
"""A soup at this distance counts half of one that is the same."""
MARGINS = 1
"""Raise when the same references would give other margins: old rows in stores are then left alone."""


def drafts(
    store: Store, asking: Evaluator, recipe: Recipe, items: Sequence[Item], replicate: int
) -> tuple[tuple[Draft, ...], ...]:
    """Different n-th answers to each item, the likeliest first: by who gave them, and how near those models are."""
    keys = [asking.fingerprint, digest(dict(asking.drafted_settings))]
    near: dict[str, float] = {}
    votes = {item.question: defaultdict[Draft, float](float) for item in items}
    for question, author, tokens, prompt_key in store.answers_of(list(votes), keys, replicate):
        if author.fingerprint not in near:
            near[author.fingerprint] = 1 / (1 + _distance(recipe, author) / NEAR)
        votes[question][Draft(tokens=tokens, prompt_key=prompt_key)] += near[author.fingerprint]
    ranked = {key: sorted(own, key=lambda draft: (-own[draft], draft.tokens)) for key, own in votes.items()}
    return tuple(tuple(ranked[item.question][:MOST]) for item in items)


def _distance(one: Recipe, other: Recipe) -> float:
    """How much of the weights of two soups is of different models."""
    a, b = (dict(zip(recipe.fingerprints, recipe.weights, strict=True)) for recipe in (one, other))
    return sum(abs(a.get(name, 0.0) - b.get(name, 0.0)) for name in {*a, *b})


@dataclass(frozen=True, kw_only=True)
class References:
    """Answers of an item's authors, and how many of them are right: those come first."""

    answers: tuple[Draft, ...]
    right: int

    def margin(self, likelihoods: Sequence[float]) -> float:
        """Mean log-likelihood a token of the right answers less that of the wrong ones, every author alike."""
        rates = [value / max(1, len(a.tokens)) for value, a in zip(likelihoods, self.answers, strict=True)]
        right, wrong = rates[: self.right], rates[self.right :]
        return sum(right) / len(right) - sum(wrong) / len(wrong)


def references(
    store: Store, asking: Evaluator, authors: Sequence[Recipe], items: Sequence[Item]
) -> dict[str, References]:
    """{item id: its authors' answers} where some are right and some are wrong."""
    keys = [asking.fingerprint, digest(dict(asking.drafted_settings))]
    stored = [[store.load(author.fingerprint, key) for key in keys] for author in authors]
    built = {}
    for item in items:
        first = [next((one for answers in own if (one := answers.first(item)) is not None), None) for own in stored]
        known = [record for record in first if record is not None and record.tokens]
        right, wrong = ([one for one in known if (one.score >= 0.5) is wanted] for wanted in (True, False))
        if right and wrong:
            given = tuple(Draft(tokens=one.tokens, prompt_key=one.prompt_key) for one in [*right, *wrong])
            built[item.id] = References(answers=given, right=len(right))
    return built


def margin_settings(asking: Evaluator) -> dict[str, Json]:
    """What keys margins in the store."""
    return {**asking.settings, "margins": MARGINS}
