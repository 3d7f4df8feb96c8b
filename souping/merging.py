"""Soups without a search: from weights given by hand, and from the recipe that lies beside a soup."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from souping import report as reporting
from souping.core import Candidate, Recipe, UserError
from souping.kitchen import Kitchen
from souping.merge.adapters import content, open_adapters
from souping.merge.checkpoint import fingerprint
from souping.report.throughput import Throughput
from souping.session import Run
from souping.store import Store

CARD = "README.md"


def merge(run: Run) -> Path:
    """`experiment=merge`: pool and weights in, soup out, nothing evaluated."""
    with Store(run.store_path) as store:
        kitchen = Kitchen(run.pool.resolve(), run.merge, None, store)
        for warning in kitchen.warnings:
            _say(f"note: {warning}")
        weights = run.optimiser.start(kitchen.names, kitchen.names, run.seed).ask() or ()
        recipe = kitchen.recipe(dict(zip(kitchen.names, weights, strict=True)))
        card = reporting.card({"experiment": run.name, "recipe": recipe.as_dict()})
        with Throughput("soup") as progress:
            return kitchen.write(recipe, run.out, {CARD: card}, progress)


def rebuild(run: Run, path: Path) -> Path:
    """`experiment=rebuild`: the soup of a recipe.json again, bit for bit.

    Ingredients are looked for by name in `pool.candidates`, then by content where this store has seen them.

    Raises:
        UserError: the recipe cannot be read, an ingredient is not found, or its content is not the recipe's.
    """
    table = read_recipe(path)
    recipe = Recipe(
        ingredients=tuple(table["ingredients"]),
        fingerprints=tuple(table["fingerprints"]),
        weights=tuple(table["weights"]),
        dtype=table["dtype"],
        method=table["method"],
        settings=table["settings"],
    )
    if recipe.id != table["id"]:
        raise UserError(f"recipe={path}: its content gives id {recipe.id}, not {table['id']}: the file was edited")
    given = {c.name: c for c in run.pool.resolve(at_least=0)}
    with Store(run.store_path) as store:
        folders = {
            name: _find(name, expected, recipe, given, store)
            for name, expected in zip(recipe.ingredients, recipe.fingerprints, strict=True)
        }
        settings = _settings(run.merge, recipe, table, store)
        settings = open_adapters(folders, settings, store.hashes) or settings
        card = path.with_name(CARD)
        extra = {CARD: card.read_text(encoding="utf-8")} if card.is_file() else {}
        with Throughput("soup") as progress:
            result: Path = settings.write(settings.plan(recipe, folders), run.out, progress=progress, extra_files=extra)
    return result


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe.json, checked for what a rebuild needs."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe={path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"recipe={path}: not JSON: {error}") from error
    kinds = {"id": str, "ingredients": list, "fingerprints": list, "weights": list, "dtype": str, "method": str}
    kinds["settings"] = dict
    wrong = [k for k, kind in kinds.items() if not isinstance(table, dict) or not isinstance(table.get(k), kind)]
    if wrong:
        raise UserError(f"recipe={path}: `{wrong[0]}` is missing or of the wrong type: is this a soup's recipe.json?")
    lengths = {len(table[key]) for key in ("ingredients", "fingerprints", "weights")}
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in table["weights"])
    if len(lengths) != 1 or 0 in lengths or not numbers:
        raise UserError(f"recipe={path}: ingredients, fingerprints and weights must be lists of one length")
    return dict(table)


def _find(name: str, expected: str, recipe: Recipe, given: Mapping[str, Candidate], store: Store) -> Path:
    """The folder of an ingredient with the recipe's content."""
    known = store.folder_of(expected)
    path = given[name].path if name in given else (Path(known) if known else None)
    if path is None:
        raise UserError(
            f"ingredient {name} ({expected[:12]}) is not known to this store: give its folder, "
            "pool.candidates='[{name: " + name + ", path: DIR}]'"
        )
    found = content(path, recipe.settings.get("base"), store.hashes)
    if found != expected:
        raise UserError(f"ingredient {name}: the content of {path} is {found[:12]}, the recipe's was {expected[:12]}")
    return path


def _settings(backend: Any, recipe: Recipe, table: Mapping[str, Any], store: Store) -> Any:
    """The backend with the settings that the recipe was written with."""
    base = recipe.settings.get("base")
    changes: dict[str, Any] = {"carry": table.get("carried_from"), "method": recipe.method}
    if "max_shard_size" in table:
        changes["max_shard_size"] = table["max_shard_size"]
    if isinstance(base, str):
        folder = backend.base or store.folder_of(base)
        if folder is None or fingerprint(Path(folder), store.hashes) != base:
            raise UserError(f"the recipe's base model ({base[:12]}) is not found or has changed: set merge.base=FOLDER")
        changes |= {"base": folder, "scale": recipe.settings.get("scale", 1.0)}
    return replace(backend, **changes)


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(line, markup=False, soft_wrap=True)
