"""The overall accuracy of BFCL without bfcl-eval: a tree of weighted means for each version."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from souping.core.fields import pick
from souping.logs.bfcl_items import LIVE_ITEMS, MEMORY, MULTI_TURN, WEB_SEARCH

Node = str | tuple[tuple[float, "Node"], ...]
"""A category, or parts with their weights: a node's value is the weighted mean of its parts."""
VERSIONS = ("v2", "v3", "v4")


def _mean(*parts: Node) -> Node:
    """A node whose value is the plain mean of its parts."""
    return tuple((1.0, part) for part in parts)


LIVE_CALLS = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_SIMPLE = _mean("simple_python", "simple_java", "simple_javascript")
_CALLS: tuple[Node, ...] = (_SIMPLE, "multiple", "parallel", "parallel_multiple")


def overall(version: str = "v3", sizes: Mapping[str, float] = LIVE_ITEMS) -> Node:
    """The tree of BFCL's overall accuracy in a version; `sizes` are numbers of items of the live categories.

    From v4 on, abstention is a part of its own, beside memory and web search.

    Raises:
        UserError: the formula of this version is not known.
    """
    pick(version, VERSIONS, "average=bfcl: version of BFCL")
    # The live parts are means over items: a category's weight is its number of items.
    live = {name: float(sizes.get(name, size)) for name, size in LIVE_ITEMS.items()}
    multi_turn = _mean(*MULTI_TURN)
    if version != "v4":
        live_items = tuple((size, name) for name, size in live.items())
        return _mean(_mean(*_CALLS, "irrelevance"), live_items, multi_turn)
    live_calls = tuple((live[name], name) for name in LIVE_CALLS)
    return (
        (10.0, _mean(*_CALLS)),
        (10.0, live_calls),
        (10.0, _mean("irrelevance", "live_irrelevance")),
        (30.0, multi_turn),
        (40.0, _mean(_mean(*WEB_SEARCH), _mean(*MEMORY))),
    )


def categories_of(node: Node) -> Iterator[str]:
    """The categories of a node, in its order."""
    if isinstance(node, str):
        yield node
        return
    for _, part in node:
        yield from categories_of(part)


def coefficients_of(node: Node, present: Collection[str]) -> dict[str, float]:
    """{category: coefficient} of a node over the categories that are present; empty if no category of the node is.

    The weight of an absent part goes to the other parts of its node.
    """
    if isinstance(node, str):
        return {node: 1.0} if node in present else {}
    parts = [(weight, coefficients_of(child, present)) for weight, child in node]
    total = sum(weight for weight, shares in parts if shares)
    coefficients = dict[str, float]()
    for weight, shares in parts:
        for name, share in shares.items():
            coefficients[name] = weight / total * share
    return coefficients
