"""Soups without a search: from weights given by hand, and from the recipe that lies beside a soup."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from souping.checkpoints.checkpoint import fingerprint
from souping.checkpoints.pool import Pool
from souping.core.types import Candidate, Recipe, UserError
from souping.merge.adapters.pool import content, open_adapters
from souping.merge.local import LocalMerge
from souping.merge.mergekit import from_yaml, to_yaml
from souping.pipeline.models import OpenPool, folder_of, with_base
from souping.pipeline.settings import RunSettings
from souping.pipeline.store import Store
from souping.report.cards import card
from souping.report.files import put
from souping.report.progress import Throughput, side_console

CARD = "README.md"


def merge(run: RunSettings) -> Path | None:
    """`experiment=merge`: pool and weights in, soup out, nothing evaluated."""
    with Store(run.store_path) as store:
        kitchen = OpenPool(run.pool.resolve(), run.merge, None, store)
        for warning in kitchen.warnings:
            _say(f"note: {warning}")
        if run.optimiser.count(len(kitchen.names)) != 1:
            raise UserError("there are no items to search on: use optimiser=fixed or optimiser=uniform")
        weights = run.optimiser.start(kitchen.names, kitchen.names, run.seed).ask() or ()
        recipe = kitchen.recipe(dict(zip(kitchen.names, weights, strict=True)))
        return _cook(run, kitchen.backend, recipe, {c.name: c.path for c in kitchen.candidates}, _card(run, recipe))


def rebuild(run: RunSettings, path: Path) -> Path | None:
    """`experiment=rebuild`: the soup of a recipe.json again, bit for bit; or that of a mergekit YAML.

    Ingredients of a recipe.json are looked for by name in `pool.candidates`, then by content where this store has seen
    them, then on the Hub where they came from; a YAML names its folders or Hub models itself.

    Raises:
        UserError: the recipe cannot be read, an ingredient is not found, or its content is not the recipe's.
    """
    with Store(run.store_path) as store:
        if path.suffix in (".yml", ".yaml"):
            return _from_mergekit(run, path, store)
        table = read_recipe(path)
        recipe = _recipe(table)
        if recipe.id != table["id"]:
            raise UserError(f"recipe={path}: its content gives id {recipe.id}, not {table['id']}: the file was edited")
        given = {c.name: c for c in run.pool.resolve(at_least=0)}
        folders = {
            name: _find(name, expected, recipe, given, store)
            for name, expected in zip(recipe.ingredients, recipe.fingerprints, strict=True)
        }
        settings = _settings(run.merge, recipe, table, store, list(folders.values()))
        backend = open_adapters(folders, settings, store.hashes) or settings
        beside = path.with_name(CARD)
        return _cook(run, backend, recipe, folders, beside.read_text(encoding="utf-8") if beside.is_file() else None)


def _from_mergekit(run: RunSettings, path: Path, store: Store) -> Path | None:
    """The soup of a mergekit YAML: its raw weights, and its divisor where it normalises."""
    imported = from_yaml(_text(path))
    for note in imported.notes:
        _say(f"note: {note}")
    pool = Pool(candidates=list(imported.models)).resolve(at_least=1)
    kitchen = OpenPool(pool, LocalMerge(allow_pickle=run.merge.allow_pickle), None, store)
    prints = {model: c.fingerprint for model, c in zip(imported.models, kitchen.candidates, strict=True)}
    base = folder_of(imported.base) if imported.base is not None else None
    content = fingerprint(base, store.hashes) if base else ""
    dtype = kitchen.recipe(dict.fromkeys(kitchen.names, 1.0)).dtype
    sources = {c.name: c.source for c in kitchen.candidates if c.source}
    recipe = replace(imported.recipe(prints, dtype, content), ingredients=kitchen.names, sources=sources)
    changes = {"method": recipe.method, "base": str(base), "scale": recipe.settings.get("scale", 1.0)} if base else {}
    backend = replace(run.merge, **changes)
    return _cook(run, backend, recipe, {c.name: c.path for c in kitchen.candidates}, _card(run, recipe))


def _cook(run: RunSettings, backend: Any, recipe: Recipe, folders: Mapping[str, Path], text: str | None) -> Path | None:
    """Write the soup; with `plan=true` print and save its plan instead."""
    plan = backend.plan(recipe, folders)
    if run.plan:
        print(plan.describe())
        if hasattr(plan, "save"):
            plan.save(run.run_dir / "plan.json")
        with suppress(UserError):  # what mergekit has no words for is not exported
            named = {name: recipe.sources.get(name, folder) for name, folder in folders.items()}
            text = to_yaml(recipe, named, getattr(backend, "base", None))
            put(run.run_dir / "mergekit.yml", text.encode())
        return None
    with Throughput("soup") as progress:
        extra = {CARD: text} if text is not None else {}
        result: Path = backend.write(plan, run.out, progress=progress, extra_files=extra)
    return result


def _card(run: RunSettings, recipe: Recipe) -> str:
    return card({"experiment": run.name, "recipe": recipe.as_dict()})


def _recipe(table: Mapping[str, Any]) -> Recipe:
    return Recipe(
        ingredients=tuple(table["ingredients"]),
        fingerprints=tuple(table["fingerprints"]),
        weights=tuple(table["weights"]),
        dtype=table["dtype"],
        method=table["method"],
        settings=table["settings"],
        sources=table.get("sources", {}),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe={path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe.json, checked for what a rebuild needs."""
    try:
        table = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"recipe={path}: not JSON: {error}") from error
    kinds = {"id": str, "ingredients": list, "fingerprints": list, "weights": list, "dtype": str, "method": str}
    kinds["settings"] = dict
    wrong = [k for k, kind in kinds.items() if not isinstance(table, dict) or not isinstance(table.get(k), kind)]
    if wrong:
        raise UserError(f"recipe={path}: `{wrong[0]}` is missing or of the wrong type: is this a soup's recipe.json?")
    sources = table.get("sources", {})
    if not isinstance(sources, dict) or not all(isinstance(v, str) for v in sources.values()):
        raise UserError(f"recipe={path}: `sources` must be a table of ingredients and Hub names")
    lengths = {len(table[key]) for key in ("ingredients", "fingerprints", "weights")}
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in table["weights"])
    if len(lengths) != 1 or 0 in lengths or not numbers:
        raise UserError(f"recipe={path}: ingredients, fingerprints and weights must be lists of one length")
    return dict(table)


def _find(name: str, expected: str, recipe: Recipe, given: Mapping[str, Candidate], store: Store) -> Path:
    """The folder of an ingredient with the recipe's content."""
    known = store.folder_of(expected)
    path = given[name].path if name in given else (Path(known) if known and Path(known).is_dir() else None)
    if path is None and name in recipe.sources:
        path = Path(recipe.sources[name])
    if path is None:
        raise UserError(
            f"ingredient {name} ({expected[:12]}) is not known to this store: give its folder, "
            "pool.candidates='[{name: " + name + ", path: DIR}]'"
        )
    path = folder_of(str(path))
    found = content(path, recipe.settings.get("base"), store.hashes)
    if found != expected:
        raise UserError(f"ingredient {name}: the content of {path} is {found[:12]}, the recipe's was {expected[:12]}")
    return path


def _settings(backend: Any, recipe: Recipe, table: Mapping[str, Any], store: Store, ingredients: Sequence[Path]) -> Any:
    """The backend with the settings that the recipe was written with."""
    base = recipe.settings.get("base")
    changes: dict[str, Any] = {"carry": table.get("carried_from"), "method": recipe.method}
    if "max_shard_size" in table:
        changes["max_shard_size"] = table["max_shard_size"]
    if isinstance(base, str):
        folder = backend.base or store.folder_of(base)
        with suppress(UserError):  # the error below says all that helps
            folder = folder_of(folder) if folder else with_base(backend, ingredients).base
        if folder is None or fingerprint(Path(folder), store.hashes) != base:
            raise UserError(f"the recipe's base model ({base[:12]}) is not found or has changed: set merge.base=FOLDER")
        changes |= {"base": str(folder), "scale": recipe.settings.get("scale", 1.0)}
    return replace(backend, **changes)


def _say(line: str) -> None:
    side_console().print(line, markup=False, soft_wrap=True)
