"""Answers of a live module by verified drafts: rows that stand at different lengths over one cache.

A pass takes each row's last token and what is proposed behind it, and gives the model's own pick at every place. The
row advances to the first place where the pick is not what was proposed, and gets the pick: greedy decoding, several
tokens a pass (Stern et al. 1811.03115; of answers that other models gave: SPEC-RL, 2509.23232). A sampled token is the
arg max of logits and noise that (seed, item, place) decide, so it needs no more than that either.

The cache is one buffer a layer, in which a row ends where it is: what was refused is written over by what comes next.
Rows of a pass stand side by side and end at one column; they are moved there as far as they do not.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from souping.core.protocols import Served
from souping.core.types import Draft, Item
from souping.evaluate.decoding import Decoding, with_noise
from souping.evaluate.engines import Answer, Asked, answer_of, own_end, pad_id, prompt_key, room
from souping.evaluate.engines.drafts import (
    PAUSE,
    SLOWER,
    TRIES,
    Drafted,
    Memory,
    Pace,
    PassCosts,
    Proposal,
    Survival,
    best_pass,
)
from souping.evaluate.engines.row_cache import RowCache, cache_name, croppable
from souping.evaluate.templates import render

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

log = logging.getLogger("souping.evaluate")
PASS = {"cpu": 1024, "cuda": 16384}
"""Tokens of a pass over prompts and drafts: enough to keep the machine busy, and rows of like length go together."""
LOGITS = {"cpu": 2**26, "cuda": 2**29}
"""Logits of a pass, at most, unless one row has more."""
SPARE = 64
"""Columns of the buffers beyond the longest row: so far rows move to the right before all are moved back."""


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


@dataclass
class Place:
    """Where a row stands in the buffers."""

    begin: int
    end: int


class Verification:
    """Running answers to the prompts of a block."""

    def __init__(
        self, module: PreTrainedModel, rows: Sequence[Drafted], rules: Rules, survival: Survival, speed: PassCosts
    ) -> None:
        self._module, self._rules, self._survival, self._speed = module, rules, survival, speed
        self._device = next(module.parameters()).device
        kind = self._device.type if self._device.type in PASS else "cuda"
        self._tokens = PASS[kind]
        self._logits = max(1, LOGITS[kind] // int(module.config.get_text_config().vocab_size))
        names = inspect.signature(module.forward).parameters
        self._cache_name = cache_name(module)
        self._positions = "position_ids" in names
        self._rows = list(rows)
        self._places: list[Place] = []
        self._cache = RowCache(module, len(rows), self._columns())

    def _columns(self) -> int:
        return max(len(row.prompt) + row.limit for row in self._rows) + SPARE

    def run(self) -> None:
        """Answer all rows."""
        import torch

        with torch.inference_mode():
            self._begin()
            self._drop()
            while self._rows:
                self._step()
                self._drop()
        self._speed.settle()

    def _begin(self) -> None:
        """Prompts with the drafts that are worth it, those of like length together."""
        reach = self._survival.reach(0, self._speed.overhead, len(self._rows))
        proposed = {row.number: row.propose_draft(reach) for row in self._rows}
        self._rows.sort(key=lambda row: len(row.prompt) + len(proposed[row.number].tokens))
        start = 0
        while start < len(self._rows):
            end = start + self._together(start, proposed)
            self._read(slice(start, end), [proposed[row.number] for row in self._rows[start:end]])
            start = end

    def _together(self, start: int, proposed: dict[int, Proposal]) -> int:
        """How many rows from `start` on go into one pass."""
        prompt = draft = 0
        for count, row in enumerate(self._rows[start:], 1):
            prompt, draft = max(prompt, len(row.prompt)), max(draft, len(proposed[row.number].tokens))
            if count > 1 and (count * (prompt + draft) > self._tokens or count * (draft + 1) > self._logits):
                return count - 1
        return len(self._rows) - start

    def _read(self, where: slice, proposals: Sequence[Proposal]) -> None:
        """One pass over prompts and what is proposed behind them."""
        rows = self._rows[where]
        width, extra = max(len(row.prompt) for row in rows), max(len(p.tokens) for p in proposals)
        ids = np.full((len(rows), width + extra), self._rules.pad)
        for number, (row, proposal) in enumerate(zip(rows, proposals, strict=True)):
            begin = width - len(row.prompt)
            ids[number, begin : width + len(proposal.tokens)] = [*row.prompt, *proposal.tokens]
            self._places.append(Place(begin=begin, end=width))
        self._cache.window(where, 0, 0)
        started = time.perf_counter()
        logits = self._forward(ids, [place.begin for place in self._places[where]], 0, extra + 1)
        self._advance(where, proposals, logits, first=True)
        self._speed.note(ids.size, time.perf_counter() - started, long=True)

    def _step(self) -> None:
        """One pass over the rows that are best asked now."""
        proposals = [row.propose() for row in self._rows]
        most = max(self._logits, len(self._rows))
        chosen, width = best_pass(proposals, self._survival, self._speed.overhead, most)
        started = time.perf_counter()
        self._gather(chosen, proposals)
        where = slice(0, len(chosen))
        first, end = self._align(where, width)
        ids = np.full((len(chosen), width), self._rules.pad)
        cut = []
        for number, (row, proposal) in enumerate(zip(self._rows[where], proposals[where], strict=True)):
            cut.append(Proposal(tokens=proposal.tokens[: width - 1], kind=proposal.kind))
            ids[number, : 1 + len(cut[-1].tokens)] = [row.tokens[-1], *cut[-1].tokens]
        self._cache.window(where, first, end)
        logits = self._forward(ids, [place.begin - first for place in self._places[where]], end - first, width)
        self._advance(where, cut, logits)
        self._speed.note(ids.size, time.perf_counter() - started, long=False)

    def _gather(self, chosen: Sequence[int], proposals: list[Proposal]) -> None:
        """Bring the chosen rows to the front."""
        for front, row in enumerate(chosen):
            if front != row:
                self._swap(front, row)
                proposals[front], proposals[row] = proposals[row], proposals[front]

    def _swap(self, one: int, other: int) -> None:
        rows, places = self._rows, self._places
        self._cache.swap(one, other, max(places[one].end, places[other].end))
        rows[one], rows[other] = rows[other], rows[one]
        places[one], places[other] = places[other], places[one]

    def _align(self, where: slice, width: int) -> tuple[int, int]:
        """(first, last) column of these rows once all end at one, with room for so many more."""
        places = self._places[where]
        end = max(place.end for place in places)
        if end + width > self._cache.columns:
            end = max(place.end - place.begin for place in places)
        for row, place in enumerate(places):
            by = end - place.end
            if by:
                self._cache.move(row, place.begin, place.end, by)
                place.begin, place.end = place.begin + by, end
        return min(place.begin for place in places), end

    def _forward(self, ids: NDArray[np.int64], begins: Sequence[int], past: int, keep: int) -> torch.Tensor:
        """Logits [rows, keep, V] of the last places of `ids` [rows, T] behind a window of `past` columns, in which
        rows begin at `begins`."""
        import torch

        columns = torch.arange(past + ids.shape[1])
        offsets = torch.tensor(begins)[:, None]
        positions = (columns[None, past:] - offsets).clamp_min(0)
        logits: torch.Tensor = self._module(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=(columns[None, :] >= offsets).long().to(self._device),
            use_cache=True,
            logits_to_keep=keep,
            **{self._cache_name: self._cache.cache},
            **({"position_ids": positions.to(self._device)} if self._positions else {}),
        ).logits
        return logits

    def _advance(self, where: slice, proposals: Sequence[Proposal], logits: torch.Tensor, first: bool = False) -> None:
        """Give each row what came true of its proposal, and the model's own pick behind it."""
        import torch

        rows, rules = self._rows[where], self._rules
        sizes = [len(proposal.tokens) + 1 for proposal in proposals]
        flat = torch.cat([one[:size] for one, size in zip(logits, sizes, strict=True)])
        seeds = [row.seed for row, size in zip(rows, sizes, strict=True) for _ in range(size)]
        steps = [len(row.tokens) + n for row, size in zip(rows, sizes, strict=True) for n in range(size)]
        picks = iter(rules.pick(flat, seeds, steps))
        start = 0
        gained = []
        for row, proposal, size in zip(rows, proposals, sizes, strict=True):
            own = [next(picks) for _ in range(size)]
            right = next((n for n in range(size - 1) if own[n] != proposal.tokens[n]), size - 1)
            self._survival.note(proposal, right, size - 1)
            if first and proposal.tokens and row.drafts and len(proposal.tokens) == len(row.drafts[0]):
                row.likelihood = log_likelihood(flat[start : start + size - 1], proposal.tokens)
            gained.append(self._until_the_end(row, own[: right + 1]))
            start += size
        if rules.stopped is not None:
            gained = self._until_a_stop(rows, gained)
        for row, proposal, place, tokens in zip(rows, proposals, self._places[where], gained, strict=True):
            row.take(tokens, proposal)
            place.end += len(tokens) - first
            row.done = row.done or not row.left or tokens[-1] in rules.ends

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
        """Leave out rows that are done; the last ones take their places."""
        for row in reversed(range(len(self._rows))):
            if self._rows[row].done:
                last = len(self._rows) - 1
                if row != last:
                    self._cache.copy(last, row, self._places[last].end)
                    self._rows[row], self._places[row] = self._rows[last], self._places[last]
                self._rows.pop()
                self._places.pop()


def log_likelihood(logits: torch.Tensor, tokens: Sequence[int]) -> float:
    """Sum of the log-probabilities (nats) of tokens [T] by logits [T, V]."""
    import torch

    logs = logits.float().log_softmax(-1)
    return float(logs[torch.arange(len(tokens)), torch.tensor(list(tokens), device=logs.device)].sum())


class Verifier:
    """Live side of an engine that verifies: whether a model can be verified, whether it pays, each worker's memory."""

    def __init__(self) -> None:
        self._memories: dict[int, Memory] = {}
        self._told: set[str] = set()
        self._paces = {False: Pace(), True: Pace()}
        self._pause, self._tries = 0, TRIES

    def takes(self, asked: Asked, module: PreTrainedModel) -> bool:
        """Whether this model and decoding can be verified; why not is said once."""
        reason = croppable(module)
        if reason and reason not in self._told:
            self._told.add(reason)
            log.warning("engine.drafts: off for this model, which has %s", reason)
        return not reason and not asked.decoding.penalties

    def pays(self) -> bool:
        """Whether the next block is verified: for `PAUSE` blocks none is, once verifying was the slower way."""
        plain, drafted = self._paces[False], self._paces[True]
        if self._pause:
            self._pause -= 1
            return False
        if plain.blocks and drafted.blocks >= self._tries and drafted.value > SLOWER * plain.value:
            self._pause, self._tries, self._paces[True] = PAUSE, 1, Pace()
            return False
        return True

    def timed(self, drafted: bool, answer: Callable[[], list[Answer]]) -> list[Answer]:
        """The answers of a block, whose time is noted."""
        started = time.perf_counter()
        answers = answer()
        tokens = sum(len(one.tokens) for one in answers)
        self._paces[drafted].note(time.perf_counter() - started, tokens)
        return answers

    def answer(
        self,
        worker: int,
        asked: Asked,
        model: Served,
        items: Sequence[Item],
        replicate: int,
        drafts: Sequence[Sequence[Draft]],
    ) -> list[Answer]:
        """The n-th answers of a worker, in the items' order."""
        memory = self._memories.setdefault(worker, Memory())
        return verified(asked, model, items, replicate, drafts, memory)


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
    limit = getattr(model.module.config, "max_position_embeddings", None)  # transformers'
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
        Verification(model.module, rows, _rules(asked, model), memory.survival, memory.speed).run()
    ends = _ends(model)
    for row in rows:
        whole = answer_of(asked, model, row.prompt, row.tokens, ends, pad_id(model), row.limit)
        answers[row.number] = replace(whole, accepted=row.accepted, likelihood=row.likelihood)
    return [answers[number] for number in range(len(items))]


def _ends(model: Served) -> tuple[int, ...]:
    return model.ends or own_end(model)


def _rules(asked: Asked, model: Served) -> Rules:
    """How this evaluator's answers are decoded and end."""
    stopped, window = (_stop_rule(model, asked.stop)) if asked.stop else (None, 1)
    pick = _draw(asked.decoding) if asked.decoding.samples else _likeliest
    return Rules(pick=pick, ends=frozenset(_ends(model)), pad=pad_id(model), stopped=stopped, window=window)


def _likeliest(logits: torch.Tensor, seeds: Sequence[int], places: Sequence[int]) -> list[int]:
    return [int(token) for token in logits.argmax(-1).tolist()]


def _draw(decoding: Decoding) -> Pick:
    return lambda logits, seeds, places: with_noise(decoding, logits, seeds, places).argmax(-1).tolist()


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
