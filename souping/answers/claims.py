"""Claim of a report: its models, its items, and which items a new report may still be made on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from souping.core.protocols import Evaluator, Objective
from souping.core.types import FloatArray, Item, Json, Recipe, digest
from souping.evaluate.benchmark import ENOUGH_ITEMS
from souping.statistics.bootstrap_t import NORMAL
from souping.statistics.corrections import Level, penalty

REMEASURING = {
    "batch_size",
    "device",
    "threads",
    "workers",
    "seed",
    "sampling_seed",
    "random_seed",
    "numpy_random_seed",
    "torch_random_seed",
    "tensor_parallel_size",
    "enforce_eager",
}
"""Settings of evaluators that make another measurement of the same claim: the machine, the batch and random draws."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a report says of a frozen soup. `candidates` are fingerprints, `evaluator` is the `evaluator_digest` of the
    evaluator that measures it."""

    soup: Recipe
    candidates: tuple[str, ...]
    evaluator: str
    objective: Objective
    items: tuple[Item, ...]

    @property
    def fingerprint(self) -> str:
        """Digest of the soup's content, the candidates, the evaluator, and the items with their weights in the
        objective.

        Names and order do not count: weights of items cover the coefficients, whatever the categories are called. An
        objective that is no weighted mean counts by its name, too. The margin, the groups of items, and what else the
        run chose (`Choices`, which the store keeps) are no part of it.
        """
        sizes = Counter(item.category for item in self.items)
        shares = coefficients(self.objective, sizes)
        items = []
        for item in self.items:
            # Rounded, as sums in another order differ in the last digits.
            weight = round(shares[item.category] / sizes[item.category], 12)
            items.append((item.prompt_digest, item.scorer_digest, weight))
        content: list[Json] = [
            content_of(self.soup),
            sorted(self.candidates),
            self.evaluator,
            sorted(items),
        ]
        if not self.objective.linear:
            content.append(self.objective.name)
        return digest(content)


class Measurement(NamedTuple):
    """How the models of a claim were measured: the evaluator's fingerprint, the ids of the items as `in_order` has
    them, the answers per item, and {digest of a model's content: fingerprint of the recipe that answered}."""

    evaluator: str
    ids: tuple[str, ...]
    answers: int
    models: Mapping[str, str]

    @classmethod
    def of(
        cls, evaluator: str, models: Sequence[Recipe], items: Sequence[Item], answers: int = 1
    ) -> Measurement:
        ids = tuple(item.id for item in in_order(items))
        contents = {digest(content_of(model)): model.fingerprint for model in models}
        return cls(evaluator, ids, answers, contents)

    def repeats(self, first: Measurement, model: Recipe) -> bool:
        """Whether this measurement took a model's answers as the `first` one did: only other models may differ."""
        content = digest(content_of(model))
        same_setup = self._replace(models=first.models) == first
        return same_setup and self.models[content] == first.models[content]


class KnownModels(NamedTuple):
    """Models that are tested with a claim, because their scores on the claim's items may have been known: fingerprints
    of `soups` with stored answers, and the number of further models, whose answers are `missing`."""

    soups: tuple[str, ...] = ()
    missing: int = 0


NONE_KNOWN = KnownModels()


@dataclass(frozen=True)
class Look:
    """The look that a report of a claim is: its number k, and whether the claim is shown for the `first` time.

    `guards` are those that were declared when it was first shown (`goals.declared`), `measurements` are all that were
    made of the claim, in their order.
    """

    number: int
    first: bool
    known: KnownModels = NONE_KNOWN
    guards: str = ""
    measurements: tuple[Measurement, ...] = ()

    def sentence(self) -> str:
        """Why it is not the first look, and what that costs."""
        what = f"these items were reported on {times(self.number - 1)} before"
        return f"{what}: this is look {self.number}, {look_penalty_text(self.number)}"


def content_of(model: Recipe) -> list[Json]:
    """What a model is made of: its ingredients (fingerprint, weight), dtype, method and settings.

    Weights are rounded, because a change in the last digits does not make another soup.
    """
    mixture = []
    for name, weight in zip(model.fingerprints, model.weights, strict=True):
        mixture.append((name, round(weight, 3)))
    return [sorted(mixture), model.dtype, model.method, dict(model.settings)]


def evaluator_digest(evaluator: Evaluator) -> str:
    """Digest of what an evaluator measures: its settings, except those of the machine and of random draws.

    pass@k depends on the number of answers to an item, a mean does not.
    """
    settings = _measured(evaluator.settings)
    # These parts have settings of their own.
    for name in ("decoding", "engine", "server"):
        inner = settings.get(name)
        if isinstance(inner, Mapping):
            settings[name] = _measured(inner)
    aggregate = evaluator.scoring.aggregate
    content: list[Json] = [settings, aggregate]
    if aggregate == "pass":
        content.append(evaluator.sampling.answers_per_item)
    return digest(content)


def _measured(settings: Mapping[str, Json]) -> dict[str, Json]:
    """The settings whose names are not in `REMEASURING`."""
    return {name: value for name, value in settings.items() if name not in REMEASURING}


def pair_digest(
    identities: Sequence[str], weights: FloatArray, a: FloatArray, b: FloatArray
) -> str:
    """Digest of a difference of two models: prompt digests and weights of the items [I], and the scores `a`, `b` [I].

    The order of the items and of the models does not matter.
    """
    shares = weights / weights.sum()
    models: list[Json] = []
    for scores in (a, b):
        # Rounded, as sums in another order differ in the last digits. Adding 0.0 turns -0.0 into 0.0.
        items = zip(identities, shares.round(12), scores.round(9) + 0.0, strict=True)
        models.append(sorted([name, float(share), float(score)] for name, share, score in items))
    return digest(sorted(models, key=str))


def in_order(items: Sequence[Item]) -> list[Item]:
    """Items in an order that does not depend on their ids."""
    return sorted(items, key=lambda item: (item.prompt_digest, item.scorer_digest))


def coefficients(objective: Objective, categories: Mapping[str, int]) -> dict[str, float]:
    """{category: its coefficient in the objective} of the categories that are the keys."""
    names = list(categories)
    return dict(zip(names, objective.coefficients(names).tolist(), strict=True))


def items_to_report(
    items: Sequence[Item],
    earlier_looks: Mapping[str, int],
    objective: Objective,
    deleted: int = 0,
) -> tuple[Item, ...]:
    """The items of a new report: all, or only the groups that were shown less.

    `earlier_looks` are {prompt digest: earlier looks}; each of the `deleted` rows counts as a look at every item. At
    look k a difference must be z_k standard errors, where z_k = z(ALPHA / k (k + 1)), so items are worth their
    information over z_k^2. Whole groups leave, by counts alone, and every category keeps ENOUGH_ITEMS items.
    """
    # {group: looks at the item that was shown most}
    group_looks: dict[str, int] = {}
    for item in items:
        looks = earlier_looks[item.prompt_digest]
        group_looks[item.group] = max(looks, group_looks.get(item.group, 0))
    sizes = Counter(item.category for item in items)
    shares = coefficients(objective, sizes)

    best = tuple(items)
    largest = 0.0
    for limit in sorted(set(group_looks.values()), reverse=True):
        candidates = tuple(item for item in items if group_looks[item.group] <= limit)
        counts = Counter(item.category for item in candidates)
        # A lower limit leaves even fewer items.
        if any(counts[name] < min(size, ENOUGH_ITEMS) for name, size in sizes.items()):
            break
        variance = sum(shares[name] ** 2 / counts[name] for name in sizes)
        # Two-sided.
        z = NORMAL.inv_cdf(1 - Level(1 + limit + deleted).family / 2)
        worth = 1 / (variance * z**2)
        if worth > largest:
            best = candidates
            largest = worth
    return best


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def look_penalty_text(look: int) -> str:
    """What a look costs, in words."""
    free = "compare settings with stop_after=search, which leaves the test split closed"
    return f"so its p-values are multiplied by {penalty(look):,} (k (k + 1) for look k); {free}"
