"""Soups without a search: from weights given by hand, and from the recipe that lies beside a soup."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from annotated_types import Interval

from souping.checkpoints.checkpoint import fingerprint
from souping.checkpoints.lora import content
from souping.core.fields import Form, load, pick, text_of
from souping.core.files import put
from souping.core.merge_protocols import Adapters, CandidatePool, MergeBackend, Nonfinite, Vocab
from souping.core.text import safe, shown
from souping.core.types import Candidate, Json, Recipe, SearchSpace, UserError
from souping.merge.local import LocalMerge
from souping.merge.methods import METHODS, source
from souping.merge.plan import HUGE, MAX_RECIPE, MOST, recipe_from_dict
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
        text = text_of(beside) if beside.is_file() else None
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


Number = Annotated[float, Interval(gt=-HUGE, lt=HUGE)]
"""A number that arithmetic in fp32 bears."""
Whole = Annotated[int, Interval(ge=0, lt=2**62)]
Dtypes = Annotated[str, Form(r"(float32|bfloat16|float16)(\+(float32|bfloat16|float16))*", "float dtypes joined by +")]


class RecipeSettings(TypedDict, total=False):
    """Settings of a recipe, as far as they are ours."""

    vocab: Vocab
    adapters: Adapters
    base: str
    by: str
    source: str
    scale: Number
    overrides: list[tuple[str, list[Number]]]
    parameters: dict[str, bool | Number]
    seed: Whole


class RecipeKeys(TypedDict):
    """Keys that every recipe.json has."""

    id: str
    ingredients: list[str]
    fingerprints: list[str]
    weights: list[Number]
    dtype: Dtypes
    method: str
    settings: RecipeSettings


class RecipeFile(RecipeKeys, total=False):
    """A recipe.json: what its soup was made of, and how it was written."""

    sources: dict[str, str] | None
    carried_from: str | None
    max_shard_size: Annotated[int, Interval(ge=1, lt=2**62)] | None
    nonfinite: Nonfinite | None


def read_recipe(path: Path) -> tuple[Recipe, Mapping[str, Json]]:
    """A recipe.json and its table, checked for what a rebuild needs.

    Raises:
        UserError: it is no soup's recipe, or was edited.
    """
    where = f"recipe={path}"
    if path.is_file() and path.stat().st_size > MAX_RECIPE:
        raise UserError(f"{where}: larger than {MAX_RECIPE} bytes, which no recipe is")
    table: dict[str, Any] = load(path, RecipeFile, "recipe")
    lengths = {len(table[key]) for key in ("ingredients", "fingerprints", "weights")} | {len({*table["ingredients"]})}
    if len(lengths) != 1 or not 0 < min(lengths) <= MOST or not any(table["weights"]):
        raise UserError(
            f"{where}: ingredients (each once), fingerprints and weights must be lists of one length, from 1 to {MOST}"
            ", and one weight at least above zero"
        )
    settings = table["settings"]
    if settings.get("by") in (None, "mergekit"):  # those of other backends are theirs to judge
        for key in settings:
            pick(key, RecipeSettings.__annotations__, f"{where}: settings")
    recipe = recipe_from_dict(table)
    if recipe.id != table["id"]:
        raise UserError(f"{where}: its content gives id {recipe.id}, not {shown(table['id'])}: the file was edited")
    return recipe, table


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
        raise UserError(f"ingredient {safe(name)}: {path} has content {held[:12]}, the recipe {shown(expected[:12])}")


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
        raise UserError(f"the recipe's base model ({shown(base[:12])}) is not here: set merge.base=FOLDER")
    return backend.with_settings({**changes, "base": folder})
