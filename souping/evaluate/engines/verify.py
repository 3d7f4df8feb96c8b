"""Answers of a live module by verified drafts: rows that stand at different lengths over one cache.

A pass takes each row's last token and what is proposed behind it, and gives the model's own pick at every place. The
row advances to the first place where the pick is not what was proposed, and gets the pick: greedy decoding, several
tokens a pass (Stern et al. 1811.03115; of answers that other models gave: SPEC-RL, 2509.23232). A sampled token is the
arg max of logits and noise that (seed, item, place) decide, so it needs no more than that either.

All rows go into one line without padding, each as far as its proposal is worth it: prompts with their drafts beside
answers that are further on. What was refused is written over in the cache by what comes next.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from souping.core.protocols import Served
from souping.core.types import Draft, Item
from souping.evaluate.decoding import Decoding, with_noise
from souping.evaluate.engines import Answer, Asked, answer_of, context, ends_of, pad_id, prompt_key, room
from souping.evaluate.engines.drafts import (
    PAUSE,
    SLOWER,
    TRIES,
    Drafted,
    Memory,
    Pace,
    Proposal,
    reaches,
)
from souping.evaluate.engines.row_cache import RowCache, RowSpan, croppable, line_logits, packs, steady_length
from souping.evaluate.templates import render

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger("souping.evaluate")
PASS = {"cpu": 1024, "cuda": 16384}
"""Tokens of a pass over prompts and drafts: enough to keep the machine busy, and rows of like length go together."""
LOGITS = {"cpu": 2**26, "cuda": 2**29}
"""Logits of a pass, at most, unless one row has more."""

Pick = Callable[["torch.Tensor", Sequence[int], Sequence[int]], list[int]]
"""pick(logits [N, V], seeds [N], places [N]) -> token ids [N]"""
Stopped = Callable[[Sequence[Sequence[int]]], list[bool]]
"""Whether an answer is stopped at the end of each window of ids."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How tokens are picked and answers end.

    An answer ends at a token of `ends`, or where `stopped` says so of the last `window` ids.
    """

    pick: Pick
    ends: frozenset[int]
    pad: int
    stopped: Stopped | None = None
    window: int = 1


class Verification:
    """Running answers to prompts: those that have a slot, and those that wait for one."""

    def __init__(
        self, module: PreTrainedModel, rows: Sequence[Drafted], rules: Rules, memory: Memory, slots: int
    ) -> None:
        self._module, self._rules = module, rules
        self._survival, self._costs = memory.survival, memory.costs
        self._device = next(module.parameters()).device
        self._most = most_tokens(module)
        self._waiting, self._rows = deque(rows), list[Drafted]()
        slots = min(slots, len(rows))
        self._free = list(range(slots))
        self._cache = RowCache(module, slots, max(len(row.prompt) + row.limit for row in rows))
        self._costs.begin(slots)

    def run(self) -> None:
        """Answer all rows."""
        import torch

        with torch.inference_mode():
            while self._waiting or self._rows:
                self._admit()
                self._step()
                self._drop()
        self._costs.settle()

    def _admit(self) -> None:
        """Give free slots to the next rows, as far as their prompts and drafts fit into one pass; one at least."""
        used = running = len(self._rows)
        while self._free and self._waiting:
            row = self._waiting[0]
            used += len(row.prompt) + (min(len(row.drafts[0]), row.limit) if row.drafts else 0)
            if used > self._most and len(self._rows) > running:
                return
            row.slot = self._free.pop(0)
            self._rows.append(self._waiting.popleft())

    def _step(self) -> None:
        """One pass over all rows."""
        import torch

        rows = self._rows
        unread, new = [row.unread for row in rows], any(not row.tokens for row in rows)
        proposals = [row.propose() for row in rows]
        chances = [self._survival.chances(proposal) for proposal in proposals]
        counts = reaches(chances, self._costs, sum(map(len, unread)), self._most)
        proposals = [proposal.first(count) for proposal, count in zip(proposals, counts, strict=True)]
        started = time.perf_counter()
        ids = [torch.tensor([*a, *b.tokens], device=self._device) for a, b in zip(unread, proposals, strict=True)]
        chunks = [RowSpan(slot=row.slot, past=row.past, count=len(one)) for row, one in zip(rows, ids, strict=True)]
        logits = line_logits(self._module, self._cache, chunks, ids, [count + 1 for count in counts])
        gained = self._advance(proposals, logits)
        total = sum(map(len, ids))
        self._costs.timed(total, time.perf_counter() - started)
        if not new:
            self._costs.gained(total, gained)

    def _advance(self, proposals: Sequence[Proposal], logits: torch.Tensor) -> int:
        """Give each row what came true of its proposal, and the model's own pick behind it. Tokens that all gained."""
        rows, sizes = self._rows, [len(proposal.tokens) + 1 for proposal in proposals]
        seeds = [row.seed for row, size in zip(rows, sizes, strict=True) for _ in range(size)]
        steps = [len(row.tokens) + n for row, size in zip(rows, sizes, strict=True) for n in range(size)]
        picks, start, gained = self._rules.pick(logits, seeds, steps), 0, []
        for row, proposal, size in zip(rows, proposals, sizes, strict=True):
            own = picks[start : start + size]
            right = next((n for n in range(size - 1) if own[n] != proposal.tokens[n]), size - 1)
            self._survival.note(proposal, right)
            if not row.tokens and row.drafts and tuple(proposal.tokens) == row.drafts[0]:
                row.likelihood = log_likelihood(logits[start : start + size - 1], proposal.tokens)
            gained.append(self._until_the_end(row, own[: right + 1]))
            start += size
        if self._rules.stopped is not None:
            gained = self._until_a_stop(rows, gained)
        for row, proposal, tokens in zip(rows, proposals, gained, strict=True):
            row.past += len(row.unread) + len(tokens) - 1
            row.take(tokens, proposal)
            row.done = row.done or not row.left or tokens[-1] in self._rules.ends
        return sum(map(len, gained))

    def _until_the_end(self, row: Drafted, tokens: list[int]) -> list[int]:
        """The tokens up to the first that ends an answer, or as many as the row may have."""
        end = next((n for n, token in enumerate(tokens) if token in self._rules.ends), len(tokens))
        return tokens[: end + 1][: row.left]

    def _until_a_stop(self, rows: Sequence[Drafted], gained: Sequence[list[int]]) -> list[list[int]]:
        """The tokens up to where a stop text is whole."""
        rules, windows = self._rules, []
        assert rules.stopped is not None
        for row, tokens in zip(rows, gained, strict=True):
            known = [*row.prompt, *row.tokens][-rules.window :]
            whole = [*known, *tokens]
            windows += [whole[: len(known) + n + 1][-rules.window :] for n in range(len(tokens))]
        flags = iter(rules.stopped(windows))
        cut = []
        for row, tokens in zip(rows, gained, strict=True):
            own = [next(flags) for _ in tokens]
            row.done = any(own)
            cut.append(tokens[: own.index(True) + 1] if row.done else tokens)
        return cut

    def _drop(self) -> None:
        """Take slots back from rows that are done."""
        self._free += sorted(row.slot for row in self._rows if row.done)
        self._rows = [row for row in self._rows if not row.done]


def most_tokens(module: PreTrainedModel) -> int:
    """Tokens of a pass, at most, where each may get logits."""
    kind = module.device.type if module.device.type in PASS else "cuda"
    size = int(module.config.get_text_config(decoder=True).vocab_size)
    return min(PASS[kind], max(1, LOGITS[kind] // size))


def log_likelihood(logits: torch.Tensor, tokens: Sequence[int]) -> float:
    """Sum of the log-probabilities (nats) of tokens [T] by logits [T, V]."""
    import torch

    logs = logits.float().log_softmax(-1)
    return float(logs[torch.arange(len(tokens)), torch.tensor(list(tokens), device=logs.device)].sum())


class Verifier:
    """Live side of an engine that verifies: whether a model can be verified, whether it pays, each worker's memory."""

    def __init__(self) -> None:
        self.memories = defaultdict[int, Memory](Memory)
        self._told: set[str] = set()
        self._packed: dict[type, bool] = {}
        self._paces = {False: Pace(), True: Pace()}
        self._pause, self._tries = 0, TRIES

    def takes(self, asked: Asked, model: Served, items: Sequence[Item]) -> bool:
        """Whether this model and decoding can be verified; why not is said once."""
        reason = croppable(model.module) or ("" if self._packs(model.module) else "attention of its own")
        if not reason and not _steady(asked, model, items):
            reason = "other positions where a row is long (longrope), as some are"
        if reason and reason not in self._told:
            self._told.add(reason)
            log.warning("engine.drafts: off for this model, which has %s", reason)
        return not reason and not asked.decoding.penalties

    def _packs(self, module: PreTrainedModel) -> bool:
        kind = type(module)
        if kind not in self._packed:
            self._packed[kind] = packs(module)
        return self._packed[kind]

    def pays(self, blocks: int) -> bool:
        """Whether the next blocks are verified: for `PAUSE` blocks none is, once verifying was the slower way."""
        plain, drafted = self._paces[False], self._paces[True]
        if self._pause > 0:
            self._pause -= blocks
            return False
        if plain.blocks and drafted.blocks >= self._tries and drafted.value > SLOWER * plain.value:
            self._pause, self._tries, self._paces[True] = PAUSE - blocks, 1, Pace()
            return False
        return True

    def timed(self, drafted: bool, blocks: int, answer: Callable[[], list[Answer]]) -> list[Answer]:
        """The answers of so many blocks, whose time is noted."""
        started = time.perf_counter()
        answers = answer()
        tokens = sum(len(one.tokens) for one in answers)
        self._paces[drafted].note(time.perf_counter() - started, tokens, blocks)
        return answers


def _steady(asked: Asked, model: Served, items: Sequence[Item]) -> bool:
    """Whether no answer to these items can grow so long that the positions of all rows change."""
    most = steady_length(model.module)
    if most is None:
        return True
    limit = context(model)
    prompts = [render(model.tokenizer, item) for item in items]
    return all(len(prompt) + room(prompt, asked.max_new_tokens, limit)[0] <= most for prompt in prompts)


def verified(
    asked: Asked,
    model: Served,
    items: Sequence[Item],
    replicate: int,
    drafts: Sequence[Sequence[Draft]],
    memory: Memory,
) -> list[Answer]:
    """The n-th answers of one worker, in the items' order; `drafts` are each item's, the likeliest first."""
    import torch

    torch.set_num_threads(asked.resolved_threads)  # counts for the calling thread alone
    prompts = [render(model.tokenizer, item) for item in items]
    limit = context(model)
    answers, rows = {}, []
    for number, (item, prompt, known) in enumerate(zip(items, prompts, drafts, strict=True)):
        free, reason = room(prompt, asked.max_new_tokens, limit)
        if reason:
            answers[number] = Answer.none(prompt, reason)
            continue
        key, seed = prompt_key(prompt), asked.decoding.seed_of(item, replicate)
        fitting = [draft.tokens for draft in known if draft.prompt_key == key and draft.tokens]
        rows.append(Drafted(number=number, prompt=prompt, drafts=fitting, limit=free, seed=seed))
    if rows:
        slots = -(-asked.batch_size // asked.workers)
        Verification(model.module, rows, _rules(asked, model), memory, slots).run()
    ends = ends_of(model)
    for row in rows:
        whole = answer_of(asked, model, row.prompt, row.tokens, ends, pad_id(model), row.limit)
        answers[row.number] = replace(whole, accepted=row.accepted, likelihood=row.likelihood)
    return [answers[number] for number in range(len(items))]


def _rules(asked: Asked, model: Served) -> Rules:
    """How this evaluator's answers are decoded and end."""
    stopped, window = (_stop_rule(model, asked.stop)) if asked.stop else (None, 1)
    pick = _picker(asked.decoding)
    return Rules(pick=pick, ends=frozenset(ends_of(model)), pad=pad_id(model), stopped=stopped, window=window)


def _picker(decoding: Decoding) -> Pick:
    if decoding.samples:
        return lambda logits, seeds, places: with_noise(decoding, logits, seeds, places).argmax(-1).tolist()
    return lambda logits, seeds, places: logits.argmax(-1).tolist()


def _stop_rule(model: Served, stop: Sequence[str]) -> tuple[Stopped, int]:
    """transformers' own criterion of stop texts, for windows of ids that end at a place; and their length."""
    import torch
    from transformers import StopStringCriteria

    criterion, pad = StopStringCriteria(model.tokenizer, list(stop)), pad_id(model)
    length = int(criterion.maximum_token_len)

    def stopped(windows: Sequence[Sequence[int]]) -> list[bool]:
        ids = torch.full((len(windows), length), pad)
        for row, window in enumerate(windows):
            ids[row, length - len(window) :] = torch.tensor(list(window))
        return [bool(flag) for flag in criterion(ids, torch.empty(0)).tolist()]

    return stopped, length
