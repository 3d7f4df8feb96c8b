"""What a run chooses on the select and search splits for the other rows of its report, as the store keeps it.

Other draws of these answers choose otherwise. If a soup that was reported could meet another best candidate, each draw
would be another chance of a false claim at the same look. So the first report's choices stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field

from souping.answers.claims import in_order
from souping.core.types import Item, Names, digest, frozen


@frozen
class Choices:
    """Candidates by name: the `best` one, the members of the soup of the `top` ones, and the router's `routes`
    {category: candidate}."""

    best: str
    top: Names = ()
    routes: Mapping[str, str] = field(default_factory=dict)

    def to_row(self, candidates: Mapping[str, str], items: Sequence[Item]) -> str:
        """These choices as JSON. Names may change: candidates count by fingerprint, categories by their items.

        `candidates` are {name: fingerprint}, `items` those of the claim.
        """
        keys = _category_keys(items)
        routes = {keys[category]: candidates[name] for category, name in self.routes.items()}
        top = sorted(candidates[name] for name in self.top)
        return json.dumps([candidates[self.best], top, routes], sort_keys=True)

    def as_first_shown(
        self, row: str, candidates: Mapping[str, str], items: Sequence[Item]
    ) -> Choices:
        """The choices of a stored row (`to_row`); these ones stand for what it lacks."""
        # Of candidates with the same bytes, a row does not say which one was meant.
        if row == self.to_row(candidates, items):
            return self
        best, top, routes = json.loads(row)
        # The first of equal candidates comes last, and so stays.
        names = {candidates[name]: name for name in reversed([*candidates])}
        keys = _category_keys(items)
        first_routes = {}
        for category, name in self.routes.items():
            first_routes[category] = names.get(routes.get(keys[category]), name)
        first_top = tuple(name for name in candidates if name in map(names.get, top))
        return Choices(
            best=names.get(best, self.best), top=first_top or self.top, routes=first_routes
        )


def _category_keys(items: Sequence[Item]) -> dict[str, str]:
    """{category: digest of its items}"""
    members: dict[str, list[str]] = {}
    for item in in_order(items):
        members.setdefault(item.category, []).append(item.prompt_digest)
    keys = dict[str, str]()
    for category, prompts in members.items():
        key = digest(prompts)
        # Categories may share their prompts, if these name no image: later ones are numbered.
        keys[category] = key if key not in keys.values() else digest([key, len(keys)])
    return keys
