"""Log-likelihoods of given answers: how likely a live module finds tokens that others wrote behind a prompt.

A prompt is read once, whatever the number of answers behind it; nothing is generated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from souping.core.protocols import Served
from souping.core.types import Draft, Item
from souping.evaluate.engines import Asked, context, pad_id, prompt_key, room
from souping.evaluate.engines.row_cache import cache_name
from souping.evaluate.engines.verify import log_likelihood, most_tokens
from souping.evaluate.templates import render

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

Wanted = tuple[int, int, tuple[int, ...]]
"""(number of the item, number of the answer, its tokens)"""


def likelihoods(
    asked: Asked, model: Served, items: Sequence[Item], answers: Sequence[Sequence[Draft]]
) -> list[list[float]]:
    """[I][A] nats; nan for an answer to another prompt, without tokens, or beyond the model's context."""
    import torch

    torch.set_num_threads(asked.resolved_threads)  # counts for the calling thread alone
    limit = context(model)
    prompts = [render(model.tokenizer, item) for item in items]
    table = [[math.nan] * len(own) for own in answers]
    wanted: list[list[Wanted]] = []
    for number, (prompt, own) in enumerate(zip(prompts, answers, strict=True)):
        key = prompt_key(prompt)
        fits = [(n, d.tokens) for n, d in enumerate(own) if d.tokens and d.prompt_key == key]
        mine = [(number, n, tokens) for n, tokens in fits if room(prompt, len(tokens), limit)[0] == len(tokens)]
        wanted += [mine] if mine else []
    wanted.sort(key=lambda mine: len(prompts[mine[0][0]]))
    with torch.inference_mode():
        for group in _groups(wanted, [len(prompt) for prompt in prompts], model):
            for (number, place, _), value in _scored(model, prompts, group):
                table[number][place] = value
    return table


def _groups(wanted: Sequence[list[Wanted]], lengths: Sequence[int], model: Served) -> Iterator[list[list[Wanted]]]:
    """Items whose prompts are read together."""
    size = most_tokens(model.module)
    group: list[list[Wanted]] = []
    for mine in wanted:
        if group and lengths[mine[0][0]] * (len(group) + 1) > size:
            yield group
            group = []
        group.append(mine)
    if group:
        yield group


def _scored(
    model: Served, prompts: Sequence[Sequence[int]], group: Sequence[Sequence[Wanted]]
) -> Iterator[tuple[Wanted, float]]:
    """The answers of some items with their log-likelihoods."""
    from transformers import DynamicCache

    own = [prompts[mine[0][0]] for mine in group]
    ids, mask = _padded(own, pad_id(model), left=True)
    cache = DynamicCache(config=model.module.config)
    firsts = _logits(model, ids, mask, cache, 1)[:, 0].float().log_softmax(-1)
    rows = [(row, one) for row, mine in enumerate(group) for one in mine]
    rows.sort(key=lambda pair: len(pair[1][2]))
    while rows:
        longest = len(rows[-1][1][2])
        count = max(1, most_tokens(model.module) // longest)
        now, rows = rows[-count:], rows[:-count]
        yield from _behind(model, cache, firsts, mask, now)


def _behind(
    model: Served, cache: DynamicCache, firsts: torch.Tensor, mask: torch.Tensor, rows: Sequence[tuple[int, Wanted]]
) -> Iterator[tuple[Wanted, float]]:
    """Answers behind the prompts that `cache` holds: one pass over all tokens but the last."""
    import torch

    index = torch.tensor([row for row, _ in rows], device=firsts.device)
    given = [one[2] for _, one in rows]
    totals = [float(firsts[row, tokens[0]]) for (row, _), tokens in zip(rows, given, strict=True)]
    if max(map(len, given)) > 1:
        ids, more = _padded([tokens[:-1] for tokens in given], pad_id(model), left=False)
        twin = copy.deepcopy(cache)
        twin.batch_select_indices(index)
        logits = _logits(model, ids, torch.cat([mask[index.cpu()], more], dim=1), twin, ids.shape[1])
        for n, tokens in enumerate(given):
            totals[n] += log_likelihood(logits[n, : len(tokens) - 1], tokens[1:]) if len(tokens) > 1 else 0.0
    yield from zip((one for _, one in rows), totals, strict=True)


def _padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as ids and mask [N, T]."""
    import torch

    width = max(1, *map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, where] = torch.tensor(list(row), dtype=torch.long)
        mask[number, where] = 1
    return ids, mask


def _logits(model: Served, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, keep: int) -> torch.Tensor:
    """Logits [N, keep, V] of the last places; `mask` spans the cache too."""

    device = next(model.module.parameters()).device
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    logits: torch.Tensor = model.module(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        use_cache=True,
        logits_to_keep=keep,
        **{cache_name(model.module): cache},
    ).logits
    return logits
