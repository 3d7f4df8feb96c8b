"""Soups without a search: from weights given by hand, and from the recipe that lies beside a soup."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.checkpoints.checkpoint import fingerprint
from souping.checkpoints.dtypes import TORCH_NAMES
from souping.checkpoints.lora import content
from souping.core.files import put
from souping.core.merge_protocols import CandidatePool, MergeBackend
from souping.core.text import first_line, read_json, safe, shown
from souping.core.types import Candidate, Json, Recipe, SearchSpace, UserError
from souping.merge.local import CHOICES, LocalMerge
from souping.merge.methods import METHODS, source
from souping.merge.plan import MAX_RECIPE, MOST, is_number, recipe_from_dict
from souping.pipeline.models import OpenPool, folder_of, with_base
from souping.pipeline.settings import MergeSettings
from souping.pipeline.store import Store
from souping.report.cards import card
from souping.report.progress import Throughput, say

CARD = "README.md"


def merge(run: MergeSettings) -> Path | None:
    """`experiment=merge`: pool and weights in, soup out, nothing evaluated."""
    with Store(run.store_path) as store, ExitStack() as parts:
        candidates, late = run.pool.resolve(), not run.plan
        pool = parts.enter_context(closing(OpenPool(candidates, run.merge, store, tokenizers=False, late=late)))
        for warning in pool.warnings:
            say(f"note: {warning}")
        if run.optimiser.count(len(pool.names)) != 1:
            raise UserError("there are no items to search on: use optimiser=fixed or optimiser=uniform")
        cell = run.optimiser.start(SearchSpace(ingredients=pool.names, candidates=pool.names), run.seed).ask()
        recipe = pool.recipe(dict(zip(pool.names, cell.weights if cell else (), strict=True)))
        if not pool.late:
            return _make(run, Soup(pool.pool, recipe, pool.folders, pool.base, _card(run, recipe)))
        with Throughput("soup") as progress:
            soup, notes = pool.write_late(recipe, run.out, lambda known: {CARD: _card(run, known)}, progress)
        for note in notes:
            say(f"note: {note}")
        return soup


def rebuild(run: MergeSettings, path: Path) -> Path | None:
    """`experiment=rebuild`: the soup of a recipe.json again, bit for bit.

    Ingredients are looked for by name in `pool.candidates`, then by content where this store has seen them, then on the
    Hub where they came from.

    Raises:
        UserError: the recipe cannot be read, an ingredient is not found, or its content is not the recipe's.
    """
    with Store(run.store_path) as store:
        recipe, table = read_recipe(path)
        _check_method(recipe)
        backend, hashes = maker(run.merge, recipe), dict[str, str]()  # every byte is read anew, once
        given = {c.name: c for c in run.pool.resolve(at_least=0)}
        folders = {
            name: _find(name, expected, recipe, given, store, backend, hashes)
            for name, expected in zip(recipe.ingredients, recipe.fingerprints, strict=True)
        }
        settings = _settings(backend, recipe, table, store, list(folders.values()), hashes)
        beside = path.with_name(CARD)
        text = _text(beside) if beside.is_file() else None
        with closing(settings.open(folders, hashes)) as pool:
            for name, expected in zip(recipe.ingredients, recipe.fingerprints, strict=True):
                _check_content(name, folders[name], pool.fingerprints[name], expected)
            return _make(run, Soup(pool, recipe, folders, settings.base, text))


def _check_method(recipe: Recipe) -> None:
    """Refuse a soup by a method of somebody's own whose code is not here, or is not what it was."""
    made_by = recipe.settings.get("source")
    if made_by is None:
        return
    if recipe.method not in METHODS:
        name = shown(recipe.method)
        raise UserError(f"{name} is a method of somebody's own: name its class, merge._target_=MODULE.CLASS")
    if source(recipe.method) != made_by:
        raise UserError(f"the code of merge.method={recipe.method} is not what made this soup: the file has changed")


def maker(backend: MergeBackend, recipe: Recipe) -> MergeBackend:
    """The backend that can make a soup again: the run's own, unless the other kind made it."""
    from souping.merge.mergekit import MergekitMerge

    theirs = recipe.settings.get("by") == "mergekit"
    if theirs == isinstance(backend, MergekitMerge):
        return backend
    kept: dict[str, str | int | float | None] = {"allow_pickle": backend.allow_pickle, "nonfinite": backend.nonfinite}
    return (MergekitMerge(method="linear") if theirs else LocalMerge()).with_settings(kept)


@dataclass(frozen=True)
class Soup:
    """Soup to be made of an opened pool, and the text that lies beside it."""

    pool: CandidatePool
    recipe: Recipe
    folders: Mapping[str, Path]
    base: str | None
    text: str | None


def _make(run: MergeSettings, soup: Soup) -> Path | None:
    """Write the soup; with `plan=true` print and save its plan instead."""
    if run.plan:
        _plan(run, soup)
        return None
    with Throughput("soup") as progress:
        extra = {CARD: soup.text} if soup.text is not None else {}
        return soup.pool.write(soup.recipe, run.out, progress=progress, extra_files=extra)


def _plan(run: MergeSettings, soup: Soup) -> None:
    from souping.merge.mergekit import to_yaml
    from souping.pipeline.requirements import look, missing

    plan = soup.pool.plan(soup.recipe)
    print(plan.describe())
    for one in missing(run, (), look(), ()):
        print(f"missing on this machine: {one.sentence()}")
    plan.save(run.run_dir / "plan.json")
    with suppress(UserError):  # what mergekit has no words for is not exported
        named = {name: soup.recipe.sources.get(name, folder) for name, folder in soup.folders.items()}
        put(run.run_dir / "mergekit.yml", to_yaml(soup.recipe, named, soup.base).encode())


def _card(run: MergeSettings, recipe: Recipe) -> str:
    return card({"experiment": run.name, "recipe": recipe.as_dict(), "rebuild": run.rebuild_command})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe={path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_recipe(path: Path) -> tuple[Recipe, Mapping[str, Json]]:
    """A recipe.json and its table, checked for what a rebuild needs.

    Raises:
        UserError: it is no soup's recipe, or was edited.
    """
    if path.is_file() and path.stat().st_size > MAX_RECIPE:
        raise UserError(f"recipe={path}: larger than {MAX_RECIPE} bytes, which no recipe is")
    try:
        table = read_json(_text(path))
    except ValueError as error:
        raise UserError(f"recipe={path}: not JSON: {first_line(error)}") from error
    wrong = [k for k, test in RECIPE.items() if not isinstance(table, dict) or not test(table.get(k))]
    if wrong:
        raise UserError(f"recipe={path}: `{wrong[0]}` is missing or of the wrong type: is this a soup's recipe.json?")
    lengths = {len(table[key]) for key in ("ingredients", "fingerprints", "weights")}
    if len(lengths) != 1 or not 0 < min(lengths) <= MOST or not any(table["weights"]):
        raise UserError(
            f"recipe={path}: ingredients, fingerprints and weights must be lists of one length, from 1 to {MOST}, and "
            "one weight at least above zero"
        )
    odd = _odd_setting(table["settings"])
    if odd is not None:
        raise UserError(f"recipe={path}: `settings.{shown(odd)}` is not what a recipe holds: was the file edited?")
    recipe = recipe_from_dict(table)
    if recipe.id != table["id"]:
        was = shown(table["id"])
        raise UserError(f"recipe={path}: its content gives id {recipe.id}, not {was}: the file was edited")
    return recipe, table


def _odd_setting(settings: Mapping[str, Json]) -> str | None:
    """The first setting that no recipe holds; those of backends that are not ours (`by`) are theirs to judge."""
    ours = settings.get("by") in (None, "mergekit")
    return next((k for k, value in settings.items() if not (SETTINGS[k](value) if k in SETTINGS else not ours)), None)


def _is_text(value: Json) -> bool:
    return isinstance(value, str)


def _is_names(value: Json) -> bool:
    """Whether a list holds names, each once."""
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_dtype(value: Json) -> bool:
    """A float dtype by torch's name, or several joined by `+`."""
    return isinstance(value, str) and set(value.split("+")) <= set(TORCH_NAMES)


def _is_numbers(value: Json) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _is_sources(value: Json) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_text, value.values())))


def _is_override(pair: Json) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and _is_numbers(pair[1])


def _is_parameters(value: Json) -> bool:
    return isinstance(value, dict) and all(isinstance(v, bool) or is_number(v) for v in value.values())


def _is_whole(value: Json) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


Test = Callable[[Json], bool]
RECIPE: Mapping[str, Test] = {
    "id": _is_text,
    "ingredients": _is_names,
    "fingerprints": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "weights": _is_numbers,
    "dtype": _is_dtype,
    "method": _is_text,
    "settings": lambda value: isinstance(value, dict),
    "sources": _is_sources,
    "carried_from": lambda value: value is None or isinstance(value, str),
    "max_shard_size": lambda value: value is None or (_is_whole(value) and value != 0),
    "nonfinite": lambda value: value in (None, *CHOICES["nonfinite"]),
}
"""What the keys of a recipe.json hold; those of which None is right may be absent."""
SETTINGS: Mapping[str, Test] = {
    "vocab": lambda value: value in CHOICES["vocab"],
    "adapters": lambda value: value in CHOICES["adapters"],
    "base": _is_text,
    "by": _is_text,
    "source": _is_text,
    "scale": is_number,
    "overrides": lambda value: isinstance(value, list) and all(map(_is_override, value)),
    "parameters": _is_parameters,
    "seed": _is_whole,
}
"""What the settings of a recipe hold."""


def _find(
    name: str,
    expected: str,
    recipe: Recipe,
    given: Mapping[str, Candidate],
    store: Store,
    backend: MergeBackend,
    hashes: MutableMapping[str, str],
) -> Path:
    """The folder of an ingredient with the recipe's content."""
    known = store.folder_of(expected)
    path = given[name].path if name in given else (Path(known) if known and Path(known).is_dir() else None)
    if path is None and name in recipe.sources:
        path = Path(recipe.sources[name])
    if path is None:
        raise UserError(
            f"ingredient {safe(name)} ({shown(expected[:12])}) is not known to this store: give its folder, "
            "pool.candidates='[{name: " + safe(name) + ", path: DIR}]'"
        )
    path = folder_of(str(path), backend.allow_pickle)
    _check_content(name, path, content(path, recipe.settings.get("base"), hashes, backend.allow_pickle), expected)
    return path


def _check_content(name: str, path: Path, held: str, expected: str) -> None:
    if held != expected:
        raise UserError(
            f"ingredient {safe(name)}: the content of {path} is {held[:12]}, the recipe's was {shown(expected[:12])}"
        )


def _settings(
    backend: MergeBackend,
    recipe: Recipe,
    table: Mapping[str, Json],
    store: Store,
    ingredients: Sequence[Path],
    hashes: MutableMapping[str, str],
) -> MergeBackend:
    """The backend with the settings that the recipe was written with."""
    own = {key: recipe.settings[key] for key in ("scale", "vocab", "adapters", "seed") if key in recipe.settings}
    changes: dict[str, Any] = {"scale": 1.0, "vocab": "error", "adapters": "keep", "seed": 0, **own}
    changes |= {"method": recipe.method, "carry": table.get("carried_from"), "dtype": None, "overrides": None}
    changes |= {key: table[key] for key in ("max_shard_size", "nonfinite") if table.get(key)}
    base = recipe.settings.get("base")
    if base is None:
        return backend.with_settings({**changes, "base": None})
    folder = backend.base or store.folder_of(base)
    with suppress(UserError):  # the error below says all that helps
        folder = str(folder_of(folder, backend.allow_pickle)) if folder else with_base(backend, ingredients).base
    if folder is None or fingerprint(Path(folder), hashes, backend.allow_pickle) != base:
        raise UserError(
            f"the recipe's base model ({shown(base[:12])}) is not found or has changed: set merge.base=FOLDER"
        )
    return backend.with_settings({**changes, "base": folder})
