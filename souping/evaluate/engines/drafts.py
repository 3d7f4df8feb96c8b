"""Drafts of one answer: what is proposed next, and how far a proposal may reach before it costs more than it saves.

A draft that begins as the answer does is proposed as it goes on. Where none fits any more, the longest run of the
answer's last tokens is looked up in the drafts, the prompt and the answer itself, and what follows it there is proposed
(prompt look-up; SuffixDecoding, Oliaro et al. 2411.04975, does it over a tree of suffixes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRAM = 2
"""Tokens that a look-up must agree on at least."""
LONGEST = 24
"""Agreement beyond this many tokens is not counted."""
PLACES = 24
"""Places of a look-up that are compared, the latest first."""
APART = -1
"""What stands between two drafts where tokens are looked up."""
FITS = 0
"""Kind of a proposal by a draft that fits; those of look-ups are 1 to 4, by how much agrees."""
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens a row that a pass may take (beside the first, which takes prompts too)."""
SURE = 0.9
"""What a pass with proposals is expected to give counts for so much: the cost of a pass is no straight line."""
START = 32.0
"""Overhead of a pass, in tokens, before any was measured."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Tokens that may come next, and the kind of reason for them."""

    tokens: Sequence[int] = ()
    kind: int = FITS


class Survival:
    """Chance that one more proposed token is right, by kind of proposal: counted over all answers so far.

    It begins with counts as if a few had been seen, so that the first answers neither hope nor despair.
    """

    def __init__(self) -> None:
        self._right = [24.0, 1.0, 2.0, 4.0, 12.0]
        self._wrong = [1.0, 1.0, 1.0, 1.0, 1.0]

    def note(self, proposal: Proposal, accepted: int, tried: int) -> None:
        """Count a proposal of which `tried` tokens were looked at and the first `accepted` were right."""
        self._right[proposal.kind] += accepted
        self._wrong[proposal.kind] += accepted < tried

    def of(self, kind: int) -> float:
        right, wrong = self._right[kind], self._wrong[kind]
        return right / (right + wrong)

    def reach(self, kind: int, overhead: float, rows: int) -> int:
        """Tokens that are worth a place in a pass over so many rows. A pass costs its tokens and `overhead` more: a
        token that comes true saves the row's share of a pass, so that it must be right at least this often."""
        least = 1 / (1 + overhead / rows)
        chance = self.of(kind)
        return int(math.log(least) / math.log(chance)) if chance < 1 else WIDTHS[-1]


@dataclass
class Drafted:
    """Answer on its way: its prompt, its drafts (the likeliest first), its tokens so far, and what of them was drafted.

    `limit` is how many tokens it may have, `done` whether it is whole.
    """

    number: int
    prompt: list[int]
    drafts: list[tuple[int, ...]]
    limit: int
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    accepted: int = 0
    done: bool = False
    likelihood: float | None = None
    _known: NDArray[np.int64] | None = None
    _own: int = 0

    def __post_init__(self) -> None:
        self._fitting = list(self.drafts)

    @property
    def left(self) -> int:
        """Tokens that it may still get."""
        return self.limit - len(self.tokens)

    def take(self, tokens: Sequence[int], proposal: Proposal) -> None:
        """Add tokens; drafts that go on in another way fit no longer. A pick behind a proposal that was cut short may
        be the draft's next token too."""
        start = len(self.tokens)
        expected = self._fitting[0][start:] if self._fitting else proposal.tokens
        wrong = (n for n, (own, other) in enumerate(zip(tokens, expected, strict=False)) if own != other)
        self.accepted += next(wrong, min(len(tokens), len(expected)))
        self.tokens += tokens
        end = len(self.tokens)
        self._fitting = [d for d in self._fitting if len(d) > end and list(d[start:end]) == self.tokens[start:]]

    def propose(self) -> Proposal:
        """What may come next; nothing where neither a draft fits nor a look-up finds anything."""
        if self._fitting:
            return Proposal(tokens=self._fitting[0][len(self.tokens) :][: self.left])
        return self._look_up()

    def propose_draft(self, most: int) -> Proposal:
        """The first draft, before there is any token, as far as it is worth it."""
        return Proposal(tokens=self.drafts[0][: min(most, self.limit)] if self.drafts else ())

    def _look_up(self) -> Proposal:
        text, size = self._text()
        if size < GRAM + 1:
            return Proposal()
        found = np.ones(size - GRAM, dtype=bool)  # [n]: whether the run that ends before n + GRAM is the last one
        for n in range(GRAM):
            found &= text[n : size - GRAM + n] == text[size - GRAM + n]
        best, place = GRAM - 1, 0
        for end in (np.flatnonzero(found)[-PLACES:] + GRAM).tolist():
            agreed = _agreement(text, end, size)
            if agreed > best:
                best, place = agreed, end
        if best < GRAM:
            return Proposal()
        tokens = text[place : min(size, place + self.left)].tolist()
        until = tokens.index(APART) if APART in tokens else len(tokens)
        return Proposal(tokens=tokens[:until], kind=min(4, 1 + best // 3))

    def _text(self) -> tuple[NDArray[np.int64], int]:
        """The drafts (the likeliest last), the prompt and the answer so far, and how long that is."""
        if self._known is None:
            before = [token for draft in reversed(self.drafts) for token in (*draft, APART)]
            self._known = np.full(len(before) + len(self.prompt) + self.limit, APART, dtype=np.int64)
            self._known[: len(before) + len(self.prompt)] = [*before, *self.prompt]
        size = len(self._known) - self.limit + len(self.tokens)
        self._known[size - len(self.tokens) + self._own : size] = self.tokens[self._own :]
        self._own = len(self.tokens)
        return self._known, size


def _agreement(text: NDArray[np.int64], end: int, size: int) -> int:
    """How many tokens before `end` are the last ones of a text of this size."""
    most = min(LONGEST, end)
    same = text[end - most : end] == text[size - most : size]
    return most if same.all() else most - 1 - int(np.flatnonzero(~same)[-1])


def best_pass(proposals: Sequence[Proposal], survival: Survival, overhead: float, most: int) -> tuple[list[int], int]:
    """(rows, tokens a row) of the pass of at most `most` tokens that is expected to give the most for its cost.

    All rows go singly where nothing is proposed; else those go first, and wide, whose proposals are good.
    """
    lengths = np.array([len(proposal.tokens) for proposal in proposals])
    if not lengths.any():
        return list(range(len(proposals))), 1
    chances = np.array([survival.of(proposal.kind) for proposal in proposals])
    longest = int(lengths.max()) + 1
    widths = np.array([w for w in (*WIDTHS, longest) if w <= min(longest, max(1, most))])
    reach = np.minimum(lengths[None, :], widths[:, None] - 1)
    gains = (1 - chances ** (reach + 1)) / (1 - chances)
    order = np.argsort(-gains, axis=1, kind="stable")
    counts = np.arange(1, len(proposals) + 1)
    costs = overhead + widths[:, None] * counts
    rates = np.take_along_axis(gains, order, axis=1).cumsum(axis=1) / costs
    rates[widths > 1] *= SURE
    rates[(widths[:, None] * counts > most) & (counts > 1)] = 0.0
    best, last = np.unravel_index(int(rates.argmax()), rates.shape)
    rows = order[best, : int(last) + 1].tolist()
    return sorted(rows), int(min(widths[best], 1 + max(lengths[rows])))


@dataclass
class PassCosts:
    """Cost of passes: seconds a token of long ones, and the overhead of any, in tokens."""

    token: float = 0.0
    overhead: float = START
    steps: list[tuple[int, float]] = field(default_factory=list)

    def note(self, tokens: int, seconds: float, long: bool) -> None:
        """Count a pass. The quickest long one tells what a token costs where nothing else does."""
        if long:
            self.token = min(self.token or seconds / tokens, seconds / tokens)
        else:
            self.steps.append((tokens, seconds))

    def settle(self) -> None:
        """Measure the overhead anew, rounded to a power of two: noise seldom changes what is decided by it."""
        if self.steps and self.token:
            extra = [seconds / self.token - tokens for tokens, seconds in self.steps]
            self.overhead = float(2 ** round(np.log2(max(1.0, float(np.median(extra))))))
        self.steps.clear()


TRIES, PAUSE, SLOWER = 3, 8, 1.05
"""Blocks that are verified before their time is compared; blocks that are then answered plainly where it was longer by
this factor, before one is tried again."""


@dataclass
class Pace:
    """Seconds a token of the last few blocks."""

    blocks: int = 0
    value: float = 0.0

    def note(self, seconds: float, tokens: int) -> None:
        """Count a block; old ones fade."""
        if tokens:
            share = max(1 / TRIES, 1 / (self.blocks + 1))
            self.value += share * (seconds / tokens - self.value)
            self.blocks += 1


@dataclass
class Memory:
    """What a worker has seen of drafts and passes, from block to block."""

    survival: Survival = field(default_factory=Survival)
    speed: PassCosts = field(default_factory=PassCosts)
