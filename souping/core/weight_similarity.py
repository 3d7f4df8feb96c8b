"""How similar the weights of models are, as values of report.json, plan.json and check.json."""

from __future__ import annotations

from collections.abc import Mapping

from souping.core.text import listed
from souping.core.types import Names, frozen

LEAST_KEPT = 0.9
"""Share of a change below which its loss is a warning."""
LARGEST_TRUNCATION = 0.1
"""Share of a soup's update above which its truncation is a warning."""
LARGEST_FLOAT16 = 65504


@frozen
class ModelSimilarity:
    """A model's weights beside the mean of the other models', in sampled blocks."""

    cosine: float | None
    """cosine of its weights to the mean of the other candidates' weights; null for adapters, which share their base"""
    distance: float | None
    """distance of its weights to that mean, over the length of the mean; null for adapters"""
    task_cosine: float | None = None
    """with a base model, the same cosine of task vectors (weights minus the base's); for adapters, of scaling * B A"""
    task_distance: float | None = None
    """the same distance of task vectors"""


@frozen
class Rounding:
    """What is lost when a weighted average is stored, from the same blocks: by rounding every weight to `dtype`."""

    dtype: str
    """the soup's dtype, by torch's name"""
    error: float | None
    """distance that rounding moves the soup, over that to its nearest ingredient; null for one ingredient, and if a
    weight overflows"""
    kept: float | None
    """with a base model, the share of the soup's change from the base that is left, as projected on that change"""
    largest: float
    """largest weight of the soup, without its sign"""

    @property
    def overflows(self) -> bool:
        """Whether a weight of the soup is too large for float16."""
        # Tensors of several dtypes make `bfloat16+float16`.
        return "float16" in self.dtype.split("+") and self.largest > LARGEST_FLOAT16

    @property
    def warning(self) -> str | None:
        """What a reader must know; None if the change is kept."""
        if self.overflows:
            return (
                f"weights of the soup up to {self.largest:.3g} overflow {self.dtype}, which ends at {LARGEST_FLOAT16}: "
                "set merge.dtype=bfloat16 or float32"
            )
        if self.kept is None or self.kept >= LEAST_KEPT:
            return None
        wider = "merge.dtype=float32"
        if self.dtype == "bfloat16" and self.largest < LARGEST_FLOAT16:
            wider += " (or float16, in which activations may overflow)"
        return (
            f"rounding the soup to {self.dtype} keeps {100 * self.kept:.0f} % of its change from merge.base_model: "
            f"{wider} keeps more. A server may cast it again: vLLM needs --dtype float32"
        )


@frozen
class PoolSimilarity:
    """How similar the weights of the candidates are, from blocks of their matrices at fixed places."""

    models: Mapping[str, ModelSimilarity]
    """{candidate: its weights beside the mean of the others'}"""
    groups: tuple[Names, ...]
    """candidates (and `merge.base_model`) whose weights are related; several groups are a warning; none for adapters"""
    lowest: float | None
    """lowest cosine of two of them; null for adapters"""
    blocks: int
    """blocks of up to 1,024 weights, or of rows of an adapter's update, that were compared"""
    rounding: Rounding | None = None
    """what storing the soup loses; null for adapters, and for methods that are not a weighted sum"""
    truncation: float | None = None
    """with `merge.rank`, distance that truncation moves the soup of adapters, over the length of its update"""

    @property
    def warnings(self) -> list[str]:
        """What a reader must know; nothing for related models whose average keeps what it averaged."""
        rounding = self.rounding.warning if self.rounding else None
        return [text for text in (self._unrelated, rounding, self._truncated) if text]

    @property
    def _truncated(self) -> str | None:
        """A warning if truncation to `merge.rank` moves the soup far; else None."""
        if self.truncation is None or self.truncation <= LARGEST_TRUNCATION:
            return None
        return (
            f"merge.rank moves the soup by {100 * self.truncation:.0f} % of what its adapters add to the base: "
            "a higher rank keeps more"
        )

    @property
    def _unrelated(self) -> str | None:
        """A warning if the candidates fall into several groups; else None."""
        if len(self.groups) < 2 or self.lowest is None:
            return None
        groups = " | ".join(map(listed, self.groups[:10]))
        return (
            f"weights fall into {len(self.groups)} unrelated groups (lowest cosine {self.lowest:z.2f}): {groups}. "
            "Their average is unlikely to work: such models have another seed, another base, or heads in another order"
        )
