"""Items that belong together: connected parts of the graph that links each to what it shares with others."""

from __future__ import annotations

from collections.abc import Iterable

Node = tuple[str, str]


def groups(shared: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """{id: the first id of its part} from (id, texts) pairs: two ids are in one part that have a text in common,
    directly or through others."""
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    ids = []
    for name, texts in shared:
        ids.append(name)
        for text in texts:
            parent[root(("text", text))] = root(("id", name))
    first: dict[Node, str] = {}
    return {name: first.setdefault(root(("id", name)), name) for name in ids}
