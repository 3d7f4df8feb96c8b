"""Drafts of one answer: what is proposed next, and how far a proposal may reach before it costs more than it saves.

A draft that begins as the answer does is proposed as it goes on. Where none fits any more, the longest run of the
answer's last tokens is looked up in the drafts, the prompt and the answer itself, and what follows it there is proposed
(prompt look-up; SuffixDecoding, Oliaro et al. 2411.04975, does it over a tree of suffixes). Where there is none, the
draft that fitted last is taken up again near its place: short passes have room for guesses.
"""

from __future__ import annotations

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
NEAR = 8
"""Places around the expected one at which a draft that fits no longer is taken up again."""
LONE, AGREED, SPLIT = 0, 1, 2
"""Kinds of a token that a fitting draft proposes: no other fits, another has it too, drafts part here."""
LOOKED_UP = np.array([3, 4, 5, 6, 6, 6, 7, 7, 7, 8])
"""Kinds of other proposed tokens, by how many tokens before it agree (the last: or more)."""
SEEN = np.array([[24.0, 48.0, 2.0, 1.0, 1.0, 1.0, 2.0, 4.0, 12.0], [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
"""[right or wrong, kind] tokens that count as seen: the first answers neither hope nor despair."""
START = 32.0
"""Overhead of a pass, in tokens, before any was measured."""
LEASTS = np.array([1.0, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.12, 0.06, 0.03])
"""Chances that the last token of each proposal must have at least, of which a pass takes the best."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Tokens that may come next, and the kind of each."""

    tokens: Sequence[int] = ()
    kinds: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def first(self, count: int) -> Proposal:
        """The first tokens of it."""
        return Proposal(tokens=self.tokens[:count], kinds=self.kinds[:count])


class Survival:
    """Chance that a proposed token is right if those before it were, by its kind: counted over all answers so far."""

    def __init__(self) -> None:
        self._right, self._wrong = SEEN.copy()

    def note(self, proposal: Proposal, accepted: int) -> None:
        """Count a proposal of which the first `accepted` tokens were right, and no more."""
        self._right += np.bincount(proposal.kinds[:accepted], minlength=SEEN.shape[1])
        if accepted < len(proposal.kinds):
            self._wrong[proposal.kinds[accepted]] += 1

    def chances(self, proposal: Proposal) -> NDArray[np.float64]:
        """[T] that all tokens up to each are right."""
        chances: NDArray[np.float64] = (self._right / (self._right + self._wrong))[proposal.kinds].cumprod()
        return chances


@dataclass
class Drafted:
    """Answer on its way: its prompt, its drafts (the likeliest first), its tokens so far, and what of them was drafted.

    `limit` is how many tokens it may have, `done` whether it is whole; `past` tokens of it are in `slot` of the cache.
    """

    number: int
    prompt: list[int]
    drafts: list[tuple[int, ...]]
    limit: int
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    accepted: int = 0
    done: bool = False
    slot: int = 0
    past: int = 0
    likelihood: float | None = None
    _known: NDArray[np.int64] | None = None
    _own: int = 0

    def __post_init__(self) -> None:
        self._fitting = list(self.drafts)
        self._lost: tuple[int, ...] = ()  # the draft that fitted last
        self._shift = 0  # how many places further on the answer goes on in it

    @property
    def left(self) -> int:
        """Tokens that it may still get."""
        return self.limit - len(self.tokens)

    @property
    def unread(self) -> list[int]:
        """Tokens that the next pass has to read before it can add one: the prompt, then the last token."""
        return self.tokens[-1:] if self.tokens else self.prompt

    def take(self, tokens: Sequence[int], proposal: Proposal) -> None:
        """Add tokens; drafts that go on in another way fit no longer. A pick behind a proposal that was cut short may
        be the draft's next token too."""
        start = len(self.tokens)
        expected = self._fitting[0][start:] if self._fitting else proposal.tokens
        wrong = (n for n, (own, other) in enumerate(zip(tokens, expected, strict=False)) if own != other)
        self.accepted += next(wrong, min(len(tokens), len(expected)))
        self.tokens += tokens
        end = len(self.tokens)
        self._lost = self._fitting[0] if self._fitting else self._lost
        self._fitting = [d for d in self._fitting if len(d) > end and list(d[start:end]) == self.tokens[start:]]

    def propose(self) -> Proposal:
        """What may come next; nothing where neither a draft fits nor a look-up finds anything."""
        if not self._fitting:
            return self._look_up() if self.tokens else Proposal()
        start = len(self.tokens)
        mine, *others = (draft[start : self.limit] for draft in self._fitting)
        kinds = np.full(len(mine), LONE)
        for other in others:
            both = min(len(mine), len(other))
            same = next((n for n in range(both) if mine[n] != other[n]), both)
            kinds[:same] = np.where(kinds[:same] == SPLIT, SPLIT, AGREED)
            if same < both:
                kinds[same] = SPLIT
        return Proposal(tokens=mine, kinds=kinds)

    def _look_up(self) -> Proposal:
        text, size = self._text()
        found = np.ones(max(0, size - GRAM), dtype=bool)  # [n]: whether the run that ends before n + GRAM is the last
        for n in range(GRAM):
            found &= text[n : n + len(found)] == text[size - GRAM + n]
        best, place = GRAM - 1, 0
        for end in (np.flatnonzero(found)[-PLACES:] + GRAM).tolist():
            agreed = _agreement(text, end, size)
            if agreed > best:
                best, place = agreed, end
        if best < GRAM:
            return self._resume()
        tokens = text[place : min(size, place + self.left)].tolist()
        return _after(tokens[: tokens.index(APART) if APART in tokens else None], best)

    def _resume(self) -> Proposal:
        """The draft that fitted last, from behind the last token near the expected place; else from that place on, as
        if one token stood for another."""
        place = len(self.tokens) + self._shift
        first, last = max(1, place - NEAR), min(len(self._lost), place + NEAR)
        near = [n for n in range(first, last + 1) if self._lost[n - 1] == self.tokens[-1]]
        if near:
            place = min(near, key=lambda n: abs(n - place))
            self._shift = place - len(self.tokens)
        return _after(self._lost[max(0, place) :][: self.left], int(bool(near)))

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


def _after(tokens: Sequence[int], agreed: int) -> Proposal:
    """Proposal of tokens before which so many agree: each that comes true is one more."""
    kinds = LOOKED_UP[np.minimum(agreed + np.arange(len(tokens)), len(LOOKED_UP) - 1)]
    return Proposal(tokens=tokens, kinds=kinds)


def _agreement(text: NDArray[np.int64], end: int, size: int) -> int:
    """How many tokens before `end` are the last ones of a text of this size."""
    most = min(LONGEST, end)
    same = text[end - most : end] == text[size - most : size]
    return most if same.all() else most - 1 - int(np.flatnonzero(~same)[-1])


def reaches(chances: Sequence[NDArray[np.float64]], costs: PassCosts, unread: int, most: int) -> list[int]:
    """Tokens of each proposal that go into a pass of at most `most`, by the chances [T] of their coming true.

    A token is worth its place where what it is expected to give, at the pace of passes so far, takes longer than it.
    """
    tables = [np.searchsorted(-one, -LEASTS, side="right") for one in chances]  # [M]: tokens at least so likely
    totals = np.sum(tables, axis=0) + unread
    sums = [np.concatenate([[0.0], one.cumsum()])[table] for one, table in zip(chances, tables, strict=True)]
    worth = np.sum(sums, axis=0) - costs.pace * costs.of(totals)
    worth[(totals > most) & (np.arange(len(LEASTS)) > 0)] = -np.inf
    best = int(worth.argmax())
    return [int(table[best]) for table in tables]


LONG, SHORT = 256, 64
"""Tokens of a pass whose time says what a token costs; of one whose time says what any pass costs."""
FADE = 0.1
"""Weight of the latest pass in the pace."""


@dataclass
class PassCosts:
    """Cost of passes, in tokens of long ones: the root of the squares of `overhead` and their tokens, for a pass takes
    about as long as the slower of reading the weights and computing. `token` is the seconds of one; `pace` how many
    tokens of answers passes without prompts gave for that."""

    token: float = 0.0
    overhead: float = START
    pace: float = 0.0
    short: list[tuple[int, float]] = field(default_factory=list)

    def of(self, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
        """[M] costs of passes of so many tokens."""
        costs: NDArray[np.float64] = np.hypot(self.overhead, tokens)
        return costs

    def begin(self, rows: int) -> None:
        """At first the pace is that of plain decoding."""
        self.pace = self.pace or rows / float(np.hypot(self.overhead, rows))

    def gained(self, tokens: int, gained: int) -> None:
        """Count what a pass of so many tokens without prompts gave."""
        self.pace += FADE * (gained / float(np.hypot(self.overhead, tokens)) - self.pace)

    def timed(self, tokens: int, seconds: float) -> None:
        """Count the time of a pass. The quickest long one tells what a token costs where nothing else does."""
        if tokens >= LONG:
            self.token = min(self.token or seconds / tokens, seconds / tokens)
        elif tokens <= SHORT:
            self.short.append((tokens, seconds))

    def settle(self) -> None:
        """Measure the overhead anew, rounded to a power of two: noise seldom changes what is decided by it."""
        if self.short and self.token:
            found = [(seconds / self.token) ** 2 - tokens**2 for tokens, seconds in self.short]
            self.overhead = float(2 ** round(np.log2(max(1.0, float(np.median(found)))) / 2))
        self.short.clear()


TRIES, PAUSE, SLOWER = 3, 8, 1.05
"""Blocks that are verified before their time is compared; blocks that are then answered plainly where it was longer by
this factor, before one is tried again."""


@dataclass
class Pace:
    """Seconds a token of the last few blocks."""

    blocks: int = 0
    value: float = 0.0

    def note(self, seconds: float, tokens: int, blocks: int) -> None:
        """Count blocks; old ones fade."""
        if tokens:
            share = max(min(1.0, blocks / TRIES), blocks / (self.blocks + blocks))
            self.value += share * (seconds / tokens - self.value)
            self.blocks += blocks


@dataclass
class Memory:
    """What a worker has seen of drafts and passes, from block to block."""

    survival: Survival = field(default_factory=Survival)
    costs: PassCosts = field(default_factory=PassCosts)
