"""BFCL's categories, and its overall accuracy as an objective.

The trees follow bfcl-eval 2026.3.23 (Apache-2.0) for v4 and the leaderboard of 2025 for v3. Both are linear in the
categories' accuracies, so they are objectives like any other. bfcl-eval's own "Overall Acc" counts a category that was
not evaluated as 0; here the categories that are there share the weight of their group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from souping.core import FloatArray, UserError
from souping.names import nearest

Version = Literal["v3", "v4"]
NON_LIVE = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
)
LIVE = {
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
    "live_irrelevance": 884,
    "live_relevance": 16,
}
"""Items of each live file: BFCL's live accuracy is over items, not over files."""
MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
WEB_SEARCH = ("web_search_base", "web_search_no_snippet")
MEMORY = ("memory_kv", "memory_vector", "memory_rec_sum")
SINGLE_TURN = (*NON_LIVE, *LIVE)
COLLECTIONS: Mapping[str, tuple[str, ...]] = {
    "non_live": NON_LIVE,
    "live": tuple(LIVE),
    "single_turn": SINGLE_TURN,
    "multi_turn": MULTI_TURN,
    "web_search": WEB_SEARCH,
    "memory": MEMORY,
    "agentic": (*MEMORY, *WEB_SEARCH),
}
CATEGORIES: Mapping[Version, tuple[str, ...]] = {
    "v3": (*SINGLE_TURN, *MULTI_TURN),
    "v4": (*SINGLE_TURN, *MULTI_TURN, *MEMORY, *WEB_SEARCH),
}

Node = str | tuple[tuple[float, "Node"], ...]
"""A category, or parts with their weights: a node's value is the weighted mean of its parts."""


def _mean(*parts: Node) -> Node:
    return tuple((1.0, part) for part in parts)


def _items(*names: str) -> Node:
    return tuple((float(LIVE[name]), name) for name in names)


_SIMPLE = _mean("simple_python", "simple_java", "simple_javascript")
_AST = (_SIMPLE, "multiple", "parallel", "parallel_multiple")
TREES: Mapping[Version, Node] = {
    "v3": _mean(_mean(*_AST, "irrelevance"), _items(*LIVE), _mean(*MULTI_TURN)),
    "v4": (
        (10.0, _mean(*_AST)),
        (10.0, _items("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")),
        (10.0, _mean("irrelevance", "live_irrelevance")),
        (30.0, _mean(*MULTI_TURN)),
        (40.0, _mean(_mean(*WEB_SEARCH), _mean(*MEMORY))),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Bfcl:
    """BFCL's overall accuracy: v3's mean of non-live, live and multi-turn, or v4's weighted mean of five groups.

    Of the categories that the benchmark lacks, the weight goes to their siblings; a group that is lacking as a whole
    leaves its weight to the other groups. In v4 live_relevance is shown and weighs nothing.
    """

    version: Version = "v3"

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        known = CATEGORIES["v4"]
        unknown = [name for name in categories if name not in known]
        if unknown:
            raise UserError(f"objective=bfcl: {unknown[0]!r} is not a category of BFCL{nearest(unknown[0], known)}")
        shares = _shares(TREES[self.version], frozenset(categories))
        if not shares:
            raise UserError(f"objective=bfcl: none of {', '.join(categories)} counts in BFCL {self.version}'s overall")
        return np.array([shares.get(name, 0.0) for name in categories])

    def notes(self, categories: Sequence[str]) -> list[str]:
        """What a reader must know of this overall: it is not the leaderboard's where categories are lacking."""
        lacking = [name for name in _leaves(TREES[self.version]) if name not in categories]
        if not lacking:
            return []
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        return [
            f"BFCL {self.version}'s overall without {shown}: their weight went to the others of their group; "
            "do not compare it with the leaderboard's"
        ]


def _shares(node: Node, there: frozenset[str]) -> dict[str, float]:
    """{category: coefficient} of a node over the categories that are there; empty if none is."""
    if isinstance(node, str):
        return {node: 1.0} if node in there else {}
    parts = [(weight, _shares(child, there)) for weight, child in node]
    total = sum(weight for weight, shares in parts if shares)
    return {name: weight / total * share for weight, shares in parts for name, share in shares.items()}


def _leaves(node: Node) -> list[str]:
    return [node] if isinstance(node, str) else [leaf for _, child in node for leaf in _leaves(child)]
