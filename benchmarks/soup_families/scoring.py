"""Right or wrong: an answer is right if each of its tokens is the most likely one after the tokens before it.

That is what greedy decoding would write. Merged models are cast to bfloat16, as language models are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.soup_families.items import Items
from benchmarks.soup_families.network import Network
from souping.core.types import BoolArray, IntArray

MODELS_AT_ONCE = 8
ITEMS_AT_ONCE = 64


def batches(items: Items) -> Iterator[IntArray]:
    """Positions of items with questions and answers of the same lengths."""
    shapes = np.stack([items.start, items.end])
    for shape in np.unique(shapes, axis=1).T:
        alike = np.flatnonzero((shapes == shape[:, None]).all(axis=0))
        yield from np.split(alike, range(ITEMS_AT_ONCE, len(alike), ITEMS_AT_ONCE))


def right(network: Network, rows: Tensor, items: Items) -> BoolArray:
    """Whether models [M, P] are right on items [M, I]."""
    answers = np.zeros((len(rows), len(items.start)), dtype=bool)
    tokens = torch.from_numpy(items.tokens)
    with torch.inference_mode():
        for batch in batches(items):
            start = int(items.start[batch[0]])
            asked = tokens[batch, : int(items.end[batch[0]])]
            first = 0
            for part in rows.split(MODELS_AT_ONCE):
                logits = network.logits(part.bfloat16(), asked[:, :-1], first=start - 1)
                correct = (logits.argmax(dim=-1) == asked[:, start:]).all(dim=-1)
                answers[first : first + len(part), batch] = correct.numpy()
                first += len(part)
    return answers
