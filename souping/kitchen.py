"""The opened pool: makes recipes of its candidates and serves the soups, in one live module or as a folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from souping.core import Candidate, Recipe, UserError
from souping.merge.adapters import open_adapters
from souping.merge.checkpoint import Checkpoint, fingerprint
from souping.merge.preflight import preflight
from souping.names import nearest
from souping.protocols import Evaluator, Served
from souping.serving import Hob, Shelf, serving
from souping.store import Store
from souping.supply import Aside, check_tokenizer, supply


class Kitchen:
    """Candidates with their checkpoints opened (headers only) and checked against each other.

    No weight is loaded before the first `serve`: a run that finds all its results in the store loads none, nor torch.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        merge: Any,
        evaluator: Evaluator | None,
        store: Store,
        aside: Aside = nullcontext,
    ) -> None:
        """Fetch what is named by the Hub, open every candidate's headers, check them against each other, then take
        their fingerprints. `aside` makes room on the terminal for a download's bar.

        Raises:
            UserError: a folder is absent or broken, a model cannot be had, or the candidates do not fit each other.
        """
        self._evaluator, self._hashes = evaluator, store.hashes
        _check_carry(merge, [c.name for c in candidates])
        supplied = supply(candidates, merge, aside, tokenizers=evaluator is not None)
        candidates, merge = supplied.candidates, supplied.merge
        self._adapters = open_adapters({c.name: c.path for c in candidates}, merge, store.hashes)
        self._merge = self._adapters or merge
        if self._adapters is not None:
            self._checkpoints: Mapping[str, Any] = self._adapters.adapters
            self.warnings, self._fingerprints = list(self._adapters.warnings), self._adapters.fingerprints
            store.saw(self._adapters.base_fingerprint, self._adapters.model_folder)
        else:
            self._checkpoints = {c.name: Checkpoint.open(c.path, allow_pickle=merge.allow_pickle) for c in candidates}
            self.warnings = preflight(self._checkpoints, vocab=merge.vocab)
            self._fingerprints = {c.name: fingerprint(c.path, store.hashes, merge.allow_pickle) for c in candidates}
        self.candidates = tuple(replace(c, fingerprint=self._fingerprints[c.name]) for c in candidates)
        for c in self.candidates:
            store.saw(c.fingerprint, c.path)
        if getattr(merge, "base", None) and self._adapters is None:
            store.saw(fingerprint(Path(merge.base), store.hashes, merge.allow_pickle), Path(merge.base))
        self.warnings += [*supplied.notes, *_twins(self.candidates)]
        self._hob = Hob(self._load, lambda module: self._merge.live(self._checkpoints, module), self._tokenizer)
        self._shelf = Shelf(lambda recipe, out: self.write(recipe, out, {}), self._own_folder, self._size())

    def check_tokenizers(self) -> None:
        """Refuse, before anything is evaluated, a candidate that has no tokenizer to evaluate it with."""
        for c in self.candidates if self._adapters is None else ():
            check_tokenizer(c.name, c.path)

    @property
    def _folders(self) -> dict[str, Path]:
        return {c.name: c.path for c in self.candidates}

    @property
    def backend(self) -> Any:
        """What plans, pours and writes this pool: the merge backend, or the adapters' own."""
        return self._merge

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.candidates)

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of named weights, ingredients in the pool's order."""
        chosen = [name for name in self.names if weights.get(name)]
        recipe: Recipe = self._merge.recipe(
            chosen, tuple(weights[n] for n in chosen), self._checkpoints, self._fingerprints, self._hashes
        )
        sources = {c.name: c.source for c in self.candidates if c.source and c.name in chosen}
        return replace(recipe, sources=sources) if sources else recipe

    def uniform(self, names: tuple[str, ...]) -> Recipe:
        return self.recipe({name: 1.0 / len(names) for name in names})

    def tokenizer(self, name: str) -> Any:
        """The tokenizer that a candidate is evaluated with."""
        return self._tokenizer(self.recipe({name: 1.0}))

    def serve(self, recipe: Recipe) -> Served:
        """The soup, ready for the run's own evaluator."""
        assert self._evaluator is not None
        return self.serving(self._evaluator)(recipe)

    def serving(self, evaluator: Evaluator) -> Callable[[Recipe], Served]:
        """What serves this pool's soups to an evaluator: a live module, or a folder where it `wants` one."""
        return serving(self._hob, self._shelf, evaluator, self._home)

    def close(self) -> None:
        """Remove the soup that was last written for an evaluator."""
        self._shelf.close()

    def write(self, recipe: Recipe, out: Path, extra_files: Mapping[str, str], progress: Any = None) -> Path:
        """The soup as a folder; `progress(bytes written, bytes in all)`."""
        plan = self._merge.plan(recipe, self._folders)
        path: Path = self._merge.write(plan, out, extra_files=extra_files, progress=progress)
        return path

    def _load(self, evaluator: Evaluator) -> Any:
        from souping.evaluate.loading import load_module

        return load_module(self._home, evaluator)

    @property
    def _home(self) -> Path:
        """A complete folder of the pool's architecture."""
        home: Path = self._adapters.model_folder if self._adapters else self.candidates[0].path
        return home

    def _own_folder(self, recipe: Recipe) -> Path | None:
        """The candidate's own folder, where the recipe is that candidate as it lies there."""
        if self._adapters is not None or len(recipe.ingredients) > 1:
            return None
        name = recipe.ingredients[0]
        return self._folders[name] if recipe.dtype == self._checkpoints[name].dtype else None

    def _size(self) -> int:
        """Bytes that a soup takes as a folder, at most: the largest candidate's, twice that where it is widened."""
        folders = [self._adapters.model_folder] if self._adapters else self._folders.values()
        largest = max(sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) for folder in folders)
        narrow = self._adapters or any(c.dtype != "float32" for c in self._checkpoints.values())
        return 2 * largest if narrow and getattr(self._merge, "dtype", None) == "float32" else largest

    def _tokenizer(self, recipe: Recipe) -> Any:
        from souping.evaluate.loading import load_tokenizer

        if self._adapters:
            return load_tokenizer(self._adapters.tokenizer_folder(recipe))
        backend: Any = self._merge
        carrier = backend.plan(recipe, self._folders).carrier if backend.vocab != "error" else ""
        return load_tokenizer(self._folders[carrier or recipe.ingredients[0]])


def _check_carry(merge: Any, names: Sequence[str]) -> None:
    carry = getattr(merge, "carry", None)
    if carry is not None and carry not in names:
        raise UserError(f"merge.carry={carry} is not a candidate ({', '.join(names)}){nearest(carry, names)}")


def _twins(candidates: tuple[Candidate, ...]) -> list[str]:
    first: dict[str, str] = {}
    for c in candidates:
        first.setdefault(c.fingerprint, c.name)
    pairs = [(first[c.fingerprint], c.name) for c in candidates if first[c.fingerprint] != c.name]
    return [f"{a} and {b} hold the same bytes: they are one model under two names" for a, b in pairs]


def free_target(out: Path) -> None:
    """Refuse, before any work, a target that holds something or that cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} exists and is not an empty folder: choose another, or move it away")
    parent = next(p for p in out.absolute().parents if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".souping-", dir=parent))
    except OSError as error:
        raise UserError(f"out={out}: cannot write below {parent}: {error.strerror}; choose another place") from error
