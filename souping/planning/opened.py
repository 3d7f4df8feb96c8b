"""The pool opened for a plan: headers and tokenizers checked as a run checks them; nothing hashed, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from souping.core import Candidate, Recipe, UserError
from souping.kitchen import Kitchen
from souping.merge import hub
from souping.planning.weights import Model, base_of
from souping.store import Store


class Known(MutableMapping[str, str]):
    """Digests of files that the store has; any other file gets one that no store holds.

    A file that this store never hashed was never evaluated under it (but for a copy elsewhere), so that a plan counts
    right without reading gigabytes.
    """

    def __init__(self, store: Store) -> None:
        self._hashes = store.hashes

    def __contains__(self, file: object) -> bool:
        return True

    def __getitem__(self, file: str) -> str:
        return self._hashes.get(file) or f"not hashed: {file}"

    def __setitem__(self, file: str, digest: str) -> None:
        raise AssertionError("a plan hashes nothing")

    def __delitem__(self, file: str) -> None:
        raise AssertionError("a plan hashes nothing")

    def __iter__(self) -> Iterator[str]:
        return iter(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)


class Peek:
    """A store as a kitchen knows it, that only tells."""

    def __init__(self, store: Store) -> None:
        self.hashes = Known(store)

    def saw(self, fingerprint: str, path: Path) -> None:
        """A plan leaves no trace."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The pool by names; `kitchen` is None where a model is not here yet, or the pool does not fit (`trouble`)."""

    names: tuple[str, ...]
    kitchen: Kitchen | None = None
    trouble: str = ""
    notes: tuple[str, ...] = ()

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of named weights: the very one where the pool is open, else one that stands for it."""
        if self.kitchen is not None:
            return self.kitchen.recipe(weights)
        chosen = tuple(name for name in self.names if weights.get(name))
        parts = tuple(weights[name] for name in chosen)
        prints = tuple(f"not here: {name}" for name in chosen)
        return Recipe(ingredients=chosen, fingerprints=prints, weights=parts, dtype="unknown")

    def uniform(self, names: Sequence[str]) -> Recipe:
        return self.recipe(dict.fromkeys(names, 1.0 / len(names)))


def open_pool(run: Any, models: Sequence[Model], store: Store) -> Opened:
    """Open what is here. Whatever a run would refuse is in `trouble`."""
    candidates = run.pool.resolve()
    names = tuple(c.name for c in candidates)
    if any(model.trouble or model.download for model in models) or not _base_is_here(run.merge, models):
        return Opened(names=names)
    try:
        kitchen = Kitchen(
            [_placed(c, run.merge.allow_pickle) for c in candidates],
            run.merge,
            run.evaluator,
            cast(Store, Peek(store)),
        )
        if getattr(run.evaluator, "wants", "module") == "module":
            kitchen.check_tokenizers()
    except UserError as error:
        return Opened(names=names, trouble=str(error))
    return Opened(names=names, kitchen=kitchen, notes=tuple(kitchen.warnings))


def _placed(candidate: Candidate, allow_pickle: bool) -> Candidate:
    name = hub.parse(candidate.path)
    here = hub.cached(name, allow_pickle) if name else None
    return replace(candidate, path=here) if here else candidate


def _base_is_here(merge: Any, models: Sequence[Model]) -> bool:
    """Whether the base model, where there is one, would not be fetched."""
    base = base_of(models, getattr(merge, "base", None))
    name = hub.parse(base) if base else None
    return name is None or hub.cached(name, merge.allow_pickle) is not None
