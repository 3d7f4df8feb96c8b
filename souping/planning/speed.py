"""How long it will take: a rate that was stated, one that this store has seen, or an assumption that is spelt out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from souping.core import Item
from souping.planning.machine import Machine
from souping.planning.room import on_gpu
from souping.store import Store

CORE, GPU = 2e10, 5e13
"""Assumed useful operations a second: of a core, and of a GPU that decodes in batches."""
CHARACTERS = 4
"""Assumed characters a token of a prompt."""
OVERHEAD = 0.005
"""Assumed seconds an item beside the arithmetic: what small models spend their time on."""
ANSWER = 64
"""Assumed tokens of an answer where the evaluator states no limit."""
POUR, FETCH = 2e9, 5e7
"""Assumed bytes a second at which ingredients are read for a soup, and at which the Hub sends."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Items a second and why."""

    items_per_second: float
    basis: Literal["stated", "measured", "assumed"]
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def speed(
    run: Any,
    evaluator: Any,
    items: Sequence[Item],
    parameters: int,
    machine: Machine,
    store: Store,
    soups: Iterable[str],
) -> Speed | None:
    """The rate of one evaluator; None where nothing is known of the model or the items."""
    if run.throughput is not None:
        return Speed(items_per_second=run.throughput, basis="stated", reason=f"throughput={run.throughput:g} items/s")
    measured = store.speed(soups, evaluator.fingerprint)
    if measured is not None:
        return Speed(
            items_per_second=measured,
            basis="measured",
            reason=f"{measured:.3g} items/s, as this store has seen these candidates answer",
        )
    if not items or not parameters:
        return None
    return _assumed(evaluator, items, parameters, machine)


def _assumed(evaluator: Any, items: Sequence[Item], parameters: int, machine: Machine) -> Speed:
    """Two operations a parameter and token (Kaplan et al. 2020, section 2.1), prompt and answer alike."""
    holder = getattr(evaluator, "server", None) or getattr(evaluator, "engine", None)
    ways = int(getattr(holder, "tensor_parallel_size", 1))
    gpu = hasattr(holder, "tensor_parallel_size") or on_gpu(evaluator, machine)
    rate = GPU * ways if gpu else CORE * machine.cores
    answer = getattr(evaluator, "max_new_tokens", None) or getattr(evaluator, "max_tokens", None) or ANSWER
    tokens = sum(len(str(item.prompt)) for item in items) / len(items) / CHARACTERS + min(answer, 8 * ANSWER)
    found = 1 / (2 * parameters * tokens / rate + OVERHEAD)
    where = f"{ways} GPU{'s' if ways > 1 else ''} at {GPU:.0e}" if gpu else f"{machine.cores} cores at {CORE:.0e}"
    return Speed(
        items_per_second=found,
        basis="assumed",
        reason=(
            f"{found:.3g} items/s, assumed: {tokens:.0f} tokens an item, 2 operations a parameter and token, "
            f"{where} operations/s, 5 ms beside; state your own with throughput=ITEMS_PER_SECOND"
        ),
    )
