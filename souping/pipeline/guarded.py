"""Guards of a run: what soups are held against, what the guards did to the search, and their tests in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from souping.analysis.guards import Admission, Guard, judge
from souping.core.fields import pick
from souping.core.types import Candidate, ItemScores, Json, Recipe, UserError, number, part
from souping.search.loop import SearchResult


def reference_of(named: str | None, config: Mapping[str, Json], candidates: Sequence[Candidate], best: str) -> str:
    """The candidate that soups are held against: `guard_against`, by default the best on the search fold.

    Raises:
        UserError: it is no candidate.
    """
    if named == "base":
        base = str(part(config, "merge").get("base") or "")
        found = [one.name for one in candidates if base and base in (one.name, str(one.path), one.source)]
        if not found:
            raise UserError(f"guard_against=base: merge.base={base or 'null'} is no candidate: add it to the pool")
        return found[0]
    return best if named is None else pick(named, [one.name for one in candidates], "guard_against")


def admission_of(guards: tuple[Guard, ...], against: str, reference: ItemScores) -> Admission:
    """Raises UserError: a guard is about the length of answers, and nobody counts their tokens."""
    if any(guard.lengths for guard in guards) and not reference.lengths.any():
        raise UserError("guard.tokens: this evaluator does not count the tokens of its answers")
    return Admission(guards=guards, against=against, reference=reference)


def guard_sentence(winner: SearchResult) -> str:
    """What the guards did to the search."""
    facts = winner.guards
    soups = f"{facts['likely']} of {facts['evaluated']} soups that answered the whole search fold"
    of = f"{soups} lost less than the guards bear"
    if winner.refused:
        return f"no soup is admissible against {facts['against']}: {of}, and the best of them may lose more"
    cost = 100 * (number(facts["cost"]) or 0.0)
    return f"{of} against {facts['against']}; keeping to them costs {cost:.1f} points on the search fold"


def tested(
    guards: Sequence[Guard],
    winner: SearchResult,
    reference: Recipe,
    measured: Mapping[str, Mapping[str, ItemScores]],
    looks: int,
) -> dict[str, Any]:
    """`guards` of report.json. `measured` is {benchmark: {recipe id: scores}} on items that the search did not see."""
    facts: dict[str, Any] = {**winner.guards, "refused": winner.refused, "checks": []}
    soup = winner.recipe
    if soup.id != reference.id:
        ours, theirs = ([measured[one.benchmark][model.id] for one in guards] for model in (soup, reference))
        facts["checks"] = [one.as_dict() for one in judge(guards, ours, theirs, looks)]
        roles = {"soup": soup, "reference": reference}
        facts["cut"] = {role: float(measured[""][model.id].truncated.mean()) for role, model in roles.items()}
    return facts
