"""Log-likelihoods of continuations that share a context: the context is run once, its keys and values serve them all.

HFLM runs every choice of a multiple-choice question with the whole question before it. Here a batch of contexts is run
with a cache, padded on the left, and the cache's rows are repeated for their continuations, padded on the right. The
attention mask hides the padding and positions are given, so that the scores are those of whole sequences but for the
rounding of other matrix shapes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from souping.evaluate.engines.transformers import left_padded

if TYPE_CHECKING:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import Cache

Request = tuple[tuple[str, str], list[int], list[int]]
"""The texts of context and continuation, and their tokens."""
Answer = tuple[float, bool]
LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")
"""Kinds of cache whose rows are keys and values and nothing else; a recurrent state does not forget its padding."""
NEEDED = ("attention_mask", "position_ids", "use_cache")
CACHES = ("cache", "past_key_values")
"""What transformers 5 calls the cache, newest name first."""
CLOSE = {"float32": 1e-3, "float64": 1e-6}
"""How far the two ways may differ on the probe, in nats; 0.2 in half precision."""


@dataclass(frozen=True)
class Group:
    """Context and the requests (their numbers) that continue it."""

    context: tuple[int, ...]
    members: tuple[int, ...]


def fits(lm: HFLM) -> bool:
    """Whether the model can share contexts. Tried once a model, on a few tokens; where it cannot, HFLM's way is used.

    It must take a cache, a mask and positions, keep a cache whose rows can be repeated, and give on contexts of unlike
    length what it gives on whole sequences.
    """
    known = lm.prefix_fits
    if known is None:
        known = lm.prefix_fits = lm.backend == "causal" and _takes(lm) and _agrees(lm)
    return bool(known)


def _takes(lm: HFLM) -> bool:
    import torch

    taken = inspect.signature(lm.model.forward).parameters
    if any(name not in taken for name in NEEDED) or _cache_name(lm) is None:
        return False
    probe = torch.full((1, 2), int(lm.prefix_token_id), device=lm.device)
    with torch.no_grad():
        cache = _cache_of(lm.model(input_ids=probe, use_cache=True))
    layers = getattr(cache, "layers", None) or ()  # transformers', as older versions have none
    return bool(layers) and all(type(layer).__name__ in LAYERS for layer in layers)  # transformers'


def _agrees(lm: HFLM) -> bool:
    import torch

    top = min(lm.model.get_input_embeddings().num_embeddings, 50)
    long, short = [i * 7 % top for i in range(1, 9)], [3, 5]
    requests: list[Request] = [(("", ""), c, t) for c in (long, short) for t in ([1, 2, 3], [4])]
    shared = _batch(lm, split(requests, 1000)[0], requests)
    dtype = str(lm.model.dtype).removeprefix("torch.")
    for number, (_, context, text) in enumerate(requests):
        with torch.no_grad():
            logits = lm.model(torch.tensor([context + text], device=lm.device)).logits[0, len(context) - 1 : -1]
        wanted = torch.tensor(text, device=logits.device)
        likelihood = float(torch.log_softmax(logits.float(), -1).gather(1, wanted[:, None]).sum())
        if not abs(likelihood - shared[number][0]) < CLOSE.get(dtype, 0.2):
            return False
    return True


def _cache_name(lm: HFLM) -> str | None:
    taken = inspect.signature(lm.model.forward).parameters
    return next((name for name in CACHES if name in taken), None)


def _cache_of(out: Mapping[str, Cache | None]) -> Cache | None:
    return next((cache for name in CACHES if (cache := out.get(name)) is not None), None)


def score(lm: HFLM, requests: Sequence[Request], whole: Callable[[list[Request]], list[Answer]]) -> list[Answer]:
    """(log-likelihood, is greedy) of each request; `whole` scores those that share no context or are too long."""
    groups, rest = split(requests, lm.max_length)
    answers: dict[int, Answer] = {}
    for batch in _batches(groups, int(lm.batch_size)):
        answers.update(_batch(lm, batch, requests))
    if rest:
        answers.update(zip(rest, whole([requests[i] for i in rest]), strict=True))
    return [answers[i] for i in range(len(requests))]


def split(requests: Sequence[Request], longest: int) -> tuple[list[Group], list[int]]:
    """Groups of at least two requests with one context, longest first, and the numbers of all others.

    A request that must be cut on the left goes with the others: where it is cut depends on its continuation.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    rest = []
    for number, (_, context, continuation) in enumerate(requests):
        if not context or not continuation or len(context) + len(continuation) > longest + 1:
            rest.append(number)
        else:
            members.setdefault(tuple(context), []).append(number)
    groups = [Group(context, tuple(own)) for context, own in members.items() if len(own) > 1]
    rest += [own[0] for own in members.values() if len(own) == 1]
    return sorted(groups, key=lambda g: (-len(g.context), g.context)), sorted(rest)


def _batches(groups: Sequence[Group], size: int) -> Iterator[list[Group]]:
    """Groups whose continuations fill a batch together; one with more has a batch of its own."""
    batch: list[Group] = []
    for group in groups:
        if batch and sum(len(g.members) for g in batch) + len(group.members) > size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _batch(lm: HFLM, groups: Sequence[Group], requests: Sequence[Request]) -> dict[int, Answer]:
    import torch

    with (
        torch.no_grad(),
        torch.autocast(
            device_type=lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None
        ),
    ):
        first, cache, mask = _contexts(lm, groups)
        rows = [(row, number) for row, group in enumerate(groups) for number in group.members]
        parts = {number: _first(first[row], requests[number][2][0]) for row, number in rows}
        longer = [(row, number) for row, number in rows if len(requests[number][2]) > 1]
        size = int(lm.batch_size)
        for start in range(0, len(longer), size):
            chunk = longer[start : start + size]
            own = cache if start + size >= len(longer) else copy.deepcopy(cache)  # choosing rows changes it
            for number, (likelihood, greedy) in _continue(lm, own, mask, chunk, requests).items():
                parts[number] = (parts[number][0] + likelihood, parts[number][1] and greedy)
    return parts


def _first(row: torch.Tensor, token: int) -> Answer:
    return float(row[token]), int(row.argmax()) == token


def _contexts(lm: HFLM, groups: Sequence[Group]) -> tuple[torch.Tensor, Cache | None, torch.Tensor]:
    """(log-probabilities after each context [B, V], its cache, its mask [B, T])."""
    import torch

    tokens, mask = left_padded([group.context for group in groups], 0)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(lm.model.forward).parameters else {}
    out = lm.model(
        input_ids=tokens.to(lm.device),
        attention_mask=mask.to(lm.device),
        position_ids=places.to(lm.device),
        use_cache=True,
        **last,
    )
    logits = out.logits[:, -1]
    return torch.log_softmax(logits, dim=-1, dtype=lm.softmax_dtype), _cache_of(out), mask


def _continue(
    lm: HFLM, cache: Cache | None, mask: torch.Tensor, chunk: Sequence[tuple[int, int]], requests: Sequence[Request]
) -> dict[int, Answer]:
    """What the second and later tokens of each continuation add."""
    import torch

    rows = torch.tensor([row for row, _ in chunk])
    texts = [requests[number][2] for _, number in chunk]
    width = max(len(t) for t in texts) - 1
    tokens = torch.zeros((len(texts), width), dtype=torch.long)
    live = torch.zeros_like(tokens)
    for i, text in enumerate(texts):
        tokens[i, : len(text) - 1] = torch.tensor(text[:-1])
        live[i, : len(text) - 1] = 1
    places = mask[rows].sum(-1, keepdim=True) + torch.arange(width)
    assert cache is not None
    cache.batch_select_indices(rows.to(lm.device))
    logits = lm.model(
        input_ids=tokens.to(lm.device),
        attention_mask=torch.cat([mask[rows], live], dim=1).to(lm.device),
        position_ids=places.to(lm.device),
        use_cache=True,
        **{str(_cache_name(lm)): cache},
    ).logits
    table = torch.log_softmax(logits, dim=-1, dtype=lm.softmax_dtype)
    answers = {}
    for i, ((_, number), text) in enumerate(zip(chunk, texts, strict=True)):
        wanted = torch.tensor(text[1:], device=table.device)
        own = table[i, : len(wanted)]
        likelihood = float(own.gather(1, wanted[:, None]).sum())
        answers[number] = (likelihood, bool((own.argmax(-1) == wanted).all()))
    return answers
