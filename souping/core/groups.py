"""Groups of items that share content."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def groups_of(shared: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """{id: the first id of its group} from (id, texts) pairs. Two ids are in one group if they share a text, directly
    or through others."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    # A graph of ids and texts, with an edge (number of the id, number of the text) where an id has a text.
    text_numbers = dict[str, int]()
    ids = list[str]()
    edges = list[tuple[int, int]]()
    for name, texts in shared:
        edges += [(len(ids), text_numbers.setdefault(text, len(text_numbers))) for text in texts]
        ids.append(name)
    id_ends, text_ends = np.array(edges, dtype=int).reshape(-1, 2).T
    size = len(ids) + len(text_numbers)
    graph = csr_matrix((np.ones(len(edges)), (id_ends, len(ids) + text_ends)), shape=(size, size))

    # Each node has the label of its component: first the ids, then the texts.
    _, labels = connected_components(graph, directed=False)
    first_id = dict[int, str]()
    # The labels of the ids alone: those of the texts follow, and are left out.
    named_labels = zip(ids, labels.tolist(), strict=False)
    return {name: first_id.setdefault(label, name) for name, label in named_labels}
