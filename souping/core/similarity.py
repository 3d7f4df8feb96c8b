"""How similar the weights of models are, as values of report.json, plan.json and check.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from souping.core.text import listed
from souping.core.types import Names


@dataclass(frozen=True, kw_only=True)
class ModelSimilarity:
    """A model's weights beside the mean of the other models', in sampled blocks."""

    cosine: float | None
    """cosine of its weights to the mean of the other candidates' weights; null for adapters, which share their base"""
    distance: float | None
    """distance of its weights to that mean, over the length of the mean; null for adapters"""
    task_cosine: float | None = None
    """with `merge.base`, the same cosine of task vectors (weights minus the base's); for adapters, of scaling * B A"""
    task_distance: float | None = None
    """the same distance of task vectors"""


@dataclass(frozen=True, kw_only=True)
class PoolSimilarity:
    """How similar the weights of the candidates are, from blocks of their matrices at fixed places."""

    models: Mapping[str, ModelSimilarity]
    """{candidate: its weights beside the mean of the others'}"""
    groups: tuple[Names, ...]
    """candidates (and `merge.base`) whose weights are related; several groups are a warning; none for adapters"""
    lowest: float | None
    """lowest cosine of two of them; null for adapters"""
    blocks: int
    """blocks of up to 1,024 weights, or of rows of an adapter's update, that were compared"""

    @property
    def warning(self) -> str | None:
        """What a reader must know; None for related models."""
        if len(self.groups) < 2 or self.lowest is None:
            return None
        groups = " | ".join(map(listed, self.groups[:10]))
        return (
            f"weights fall into {len(self.groups)} unrelated groups (lowest cosine {self.lowest:z.2f}): {groups}. "
            "Their average is unlikely to work: such models have another seed, another base, or heads in another order"
        )
