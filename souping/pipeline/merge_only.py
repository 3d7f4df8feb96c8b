"""Soups without a search: from weights given by hand, and from the recipe that lies beside a soup."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from souping.checkpoints.checkpoint import fingerprint
from souping.checkpoints.lora import content
from souping.checkpoints.pool import Pool
from souping.core.protocols import CandidatePool, MergeBackend
from souping.core.types import Candidate, Json, Recipe, UserError
from souping.merge.mergekit import Imported, from_yaml, to_yaml
from souping.merge.plan import recipe_from_dict
from souping.pipeline.models import OpenPool, folder_of, with_base
from souping.pipeline.settings import RunSettings
from souping.pipeline.store import Store
from souping.report.cards import card
from souping.report.files import put
from souping.report.progress import Throughput, side_console

CARD = "README.md"


def merge(run: RunSettings) -> Path | None:
    """`experiment=merge`: pool and weights in, soup out, nothing evaluated."""
    with Store(run.store_path) as store, ExitStack() as parts:
        pool = parts.enter_context(closing(OpenPool(run.pool.resolve(), run.merge, store, tokenizers=False)))
        for warning in pool.warnings:
            _say(f"note: {warning}")
        if run.optimiser.count(len(pool.names)) != 1:
            raise UserError("there are no items to search on: use optimiser=fixed or optimiser=uniform")
        weights = run.optimiser.start(pool.names, pool.names, run.seed).ask() or ()
        recipe = pool.recipe(dict(zip(pool.names, weights, strict=True)))
        return _make(run, Soup(pool.pool, recipe, pool.folders, pool.base, _card(run, recipe)))


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
        recipe = recipe_from_dict(table)
        if recipe.id != table["id"]:
            raise UserError(f"recipe={path}: its content gives id {recipe.id}, not {table['id']}: the file was edited")
        given = {c.name: c for c in run.pool.resolve(at_least=0)}
        folders = {
            name: _find(name, expected, recipe, given, store)
            for name, expected in zip(recipe.ingredients, recipe.fingerprints, strict=True)
        }
        settings = _settings(run.merge, recipe, table, store, list(folders.values()))
        beside = path.with_name(CARD)
        text = _text(beside) if beside.is_file() else None
        with closing(settings.open(folders, store.hashes)) as pool:
            return _make(run, Soup(pool, recipe, folders, settings.base, text))


def _from_mergekit(run: RunSettings, path: Path, store: Store) -> Path | None:
    """The soup of a mergekit YAML: its raw weights, and its divisor where it normalises."""
    imported = from_yaml(_text(path))
    for note in imported.notes:
        _say(f"note: {note}")
    candidates = Pool(candidates=list(imported.models)).resolve(at_least=1)
    base = folder_of(imported.base) if imported.base is not None else None
    with closing(OpenPool(candidates, _as_imported(run.merge, imported, base), store, tokenizers=False)) as pool:
        prints = {model: c.fingerprint for model, c in zip(imported.models, pool.candidates, strict=True)}
        content = fingerprint(base, store.hashes) if base else ""
        dtype = pool.recipe(dict.fromkeys(pool.names, 1.0)).dtype
        sources = {c.name: c.source for c in pool.candidates if c.source}
        recipe = replace(imported.recipe(prints, dtype, content), ingredients=pool.names, sources=sources)
        return _make(run, Soup(pool.pool, recipe, pool.folders, pool.base, _card(run, recipe)))


def _as_imported(backend: MergeBackend, imported: Imported, base: Path | None) -> MergeBackend:
    """The backend with the method of a YAML, which is silent on vocabularies and takes dtypes from the ingredients."""
    changes: dict[str, str | float | None] = {"method": imported.method, "scale": 1.0, "overrides": None}
    own = {"base": str(base)} if base is not None else {}
    return backend.with_settings({**changes, **own, "dtype": None, "vocab": "error"})


@dataclass(frozen=True)
class Soup:
    """Soup to be made of an opened pool, and the text that lies beside it."""

    pool: CandidatePool
    recipe: Recipe
    folders: Mapping[str, Path]
    base: str | None
    text: str | None


def _make(run: RunSettings, soup: Soup) -> Path | None:
    """Write the soup; with `plan=true` print and save its plan instead."""
    if run.plan:
        plan = soup.pool.plan(soup.recipe)
        print(plan.describe())
        plan.save(run.run_dir / "plan.json")
        with suppress(UserError):  # what mergekit has no words for is not exported
            named = {name: soup.recipe.sources.get(name, folder) for name, folder in soup.folders.items()}
            put(run.run_dir / "mergekit.yml", to_yaml(soup.recipe, named, soup.base).encode())
        return None
    with Throughput("soup") as progress:
        extra = {CARD: soup.text} if soup.text is not None else {}
        return soup.pool.write(soup.recipe, run.out, progress=progress, extra_files=extra)


def _card(run: RunSettings, recipe: Recipe) -> str:
    return card({"experiment": run.name, "recipe": recipe.as_dict()})


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
    kinds_fit = _texts(table["ingredients"]) and _texts(table["fingerprints"]) and _numbers(table["weights"])
    if len(lengths) != 1 or 0 in lengths or not kinds_fit:
        raise UserError(
            f"recipe={path}: ingredients, fingerprints and weights must be lists of one length, of texts and of numbers"
        )
    odd = _odd_setting(table["settings"])
    if odd:
        raise UserError(f"recipe={path}: `settings.{odd}` is not what a recipe holds: was the file edited?")
    return dict(table)


def _odd_setting(settings: Mapping[str, Json]) -> str:
    """The first key of a recipe's settings whose value is of the wrong kind."""
    right: dict[str, Callable[[Json], bool]] = {
        "vocab": lambda value: isinstance(value, str),
        "base": lambda value: isinstance(value, str),
        "scale": lambda value: _numbers([value]),
        "divisor": lambda value: _numbers([value]) and value != 0,
        "overrides": lambda value: isinstance(value, list) and all(map(_is_override, value)),
    }
    return next((key for key, test in right.items() if key in settings and not test(settings[key])), "")


def _is_override(pair: Json) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and _numbers(pair[1])


def _texts(values: Json) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _numbers(values: Json) -> bool:
    """Whether a list holds numbers that a float can be."""
    most = sys.float_info.max
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most for value in values
    )


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
    held = content(path, recipe.settings.get("base"), store.hashes)
    if held != expected:
        raise UserError(f"ingredient {name}: the content of {path} is {held[:12]}, the recipe's was {expected[:12]}")
    return path


def _settings(
    backend: MergeBackend, recipe: Recipe, table: Mapping[str, Any], store: Store, ingredients: Sequence[Path]
) -> MergeBackend:
    """The backend with the settings that the recipe was written with."""
    base = recipe.settings.get("base")
    changes: dict[str, Any] = {"carry": table.get("carried_from"), "method": recipe.method}
    if "max_shard_size" in table:
        changes["max_shard_size"] = table["max_shard_size"]
    if isinstance(base, str):
        folder = backend.base or store.folder_of(base)
        with suppress(UserError):  # the error below says all that helps
            folder = str(folder_of(folder)) if folder else with_base(backend, ingredients).base
        if folder is None or fingerprint(Path(folder), store.hashes) != base:
            raise UserError(f"the recipe's base model ({base[:12]}) is not found or has changed: set merge.base=FOLDER")
        changes |= {"base": folder, "scale": recipe.settings.get("scale", 1.0)}
    return backend.with_settings(changes)


def _say(line: str) -> None:
    side_console().print(line, markup=False, soft_wrap=True)
