"""Groups of items that share content."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def groups_of(shared: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """{id: the first id of its group} from (id, texts) pairs. Two ids are in one group if they share a text, directly
    or through others."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    places = dict[str, int]()
    ids = list[str]()
    edges = list[tuple[int, int]]()
    for name, texts in shared:
        edges += [(len(ids), places.setdefault(text, len(places))) for text in texts]
        ids.append(name)
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    size = len(ids) + len(places)
    graph = csr_matrix((np.ones(len(edges)), (rows, len(ids) + columns)), shape=(size, size))
    first = dict[int, str]()
    labels = connected_components(graph, directed=False)[1].tolist()
    return {name: first.setdefault(label, name) for name, label in zip(ids, labels, strict=False)}
