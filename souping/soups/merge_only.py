"""Soups without a search: from given weights, from a recipe.json, and the soup that `out` already holds."""

from __future__ import annotations

import filecmp
import os
import shlex
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypedDict

from souping.answers.store import Store
from souping.checkpoints.archives import is_checkpoint
from souping.checkpoints.checkpoint import Checkpoint, describe_names
from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.folder import Like
from souping.checkpoints.header import MAX_RECIPE
from souping.checkpoints.layouts import rules_of
from souping.checkpoints.lora import content
from souping.core.fields import Bounds, Count, Form, load_json, pick, text_of
from souping.core.files import dated_path, nearby, write_atomically
from souping.core.folders import hold_folder
from souping.core.text import one_line, safe, shown
from souping.core.types import (
    Candidate,
    Folders,
    JsonObject,
    Names,
    Recipe,
    SearchSpace,
    UserError,
    refuse_start,
)
from souping.core.weight_similarity import PoolSimilarity
from souping.merge import Adapters, CandidatePool, Format, Nonfinite, Vocab
from souping.merge.backend import MergeBackend
from souping.merge.local import method_digest
from souping.merge.makers import MAKERS, maker
from souping.merge.mergekit_yaml import to_yaml
from souping.merge.methods import METHODS
from souping.merge.plan import HUGE, MOST_INGREDIENTS
from souping.merge.soup_files import CARD, RECIPE, planned_files
from souping.report.cells import nonempty
from souping.report.format import clean, quoted
from souping.report.progress import Throughput, say
from souping.report.recipe import recipe_summary
from souping.soups.card import soup_card
from souping.soups.models import RunPool, folder_of, with_base
from souping.soups.serving import STORED_SOUP_PREFIX, check_space, scratch_place
from souping.soups.settings import MergeSettings, SoupSettings

RESULT_PAGES = ("report.html", "selection.json")
"""Files of a run, the main one first."""


def execute_merge(settings: MergeSettings) -> None:
    """Merge or rebuild, print where everything is, and send the soup if there is an upload.

    Raises:
        UserError: `out` is in use, the models do not fit each other, or the Hub refuses.
    """
    if not settings.plan:
        free_target(settings.out)
    goal = None if settings.plan else settings.upload
    if goal is not None:
        from souping.soups.upload import check_target

        # Who may not write to the Hub learns it before the merge.
        check_target(goal, settings.out)
    with closing(settings.merge):
        folder = rebuild(settings) if settings.recipe else merge(settings)
    if settings.plan:
        refuse_start(settings.merge.needs())
    show_files(settings, folder)
    if goal is not None and folder is not None:
        from souping.soups.upload import send

        send(settings, goal, folder)


def show_files(settings: SoupSettings, soup: Path | None) -> None:
    """Print where the result is, and how the soup is made again."""
    for name in RESULT_PAGES:
        page = settings.run_dir / name
        if page.exists():
            print(f"{page.stem}: {safe(shlex.quote(nearby(page)))}")
            break
    if soup is not None:
        print(f"soup: {safe(shlex.quote(nearby(soup)))}")
        if (soup / "recipe.json").exists():
            print(f"rebuild: {safe(settings.rebuild_command)}")
    if settings.tracker.hint:
        print(f"tracker: {safe(settings.tracker.hint)}")


def merge(settings: MergeSettings) -> Path | None:
    """The folder of the soup of a pool and weights, without any evaluation; None with `plan`, which is only shown."""
    with Store(settings.store_path) as store, ExitStack() as stack:
        pool = RunPool.fetch(
            settings.pool.resolve(),
            settings.merge,
            store,
            tokenizers=False,
            # Files are hashed while the soup is written. A plan writes none.
            hash_later=not settings.plan,
            stream=True,
        )
        stack.enter_context(closing(pool))
        notes = [*settings.pool.sentences, *settings.pool.notes, *pool.warnings]
        weights = _only_weights(settings, pool.names)
        similarity = pool.similarity_of(weights)
        notes += similarity.warnings if similarity else []
        for note in dict.fromkeys(notes):
            say(f"note: {note}")
        recipe = pool.recipe(weights)
        if settings.plan:
            _show_plan(settings, pool.merge_pool, recipe, pool.folders, pool.base, similarity)
            _show_upload(settings, pool.merge_pool, recipe)
            return None
        with Throughput("soup") as progress:
            # All digests are known: so is the recipe.
            if not pool.hashes_later:
                card = {CARD: _card(settings, recipe, pool.merge_pool)}
                return pool.merge_pool.write(
                    recipe, settings.out, progress=progress, extra_files=card
                )
            # Digests, and so the final recipe and its card, are known once the ingredients are read.
            soup, notes = pool.write_late(
                recipe,
                settings.out,
                lambda known: {CARD: _card(settings, known, pool.merge_pool)},
                progress,
            )
        for note in notes:
            say(f"note: {note}")
        return soup


def _only_weights(settings: MergeSettings, names: Names) -> dict[str, float]:
    """{candidate: weight} of an optimiser that tries one point (UserError if it would search)."""
    if settings.optimiser.count(len(names)) != 1:
        raise UserError(
            "there are no items to search on: use optimiser=fixed, optimiser=uniform, or optimiser=trajectory with "
            "optimiser.kind=ema"
        )
    space = SearchSpace(ingredients=names, candidates=names)
    request = settings.optimiser.start(space, settings.seed).ask()
    # The optimiser has one point.
    assert request is not None
    return dict(zip(names, request.weights, strict=True))


def show_names(settings: SoupSettings) -> None:
    """Print which tensor of the soup comes from which tensor of the candidates, and how."""
    merge = settings.merge
    home = settings.pool.home
    folder = folder_of(str(home), merge.allow_pickle) if home else None
    like = Like(folder, rules_of(merge.name_rules))
    # {lines: the first candidate with them}
    first_names = dict[tuple[str, ...], str]()
    for candidate in settings.pool.resolve(at_least=1):
        path = folder_of(str(candidate.path), merge.allow_pickle)
        lines = tuple(describe_names(Checkpoint.open(path, merge.allow_pickle, like)))
        first = first_names.setdefault(lines, candidate.name)
        if first == candidate.name:
            print("\n  ".join(map(one_line, (f"{first}:", *lines))))
        else:
            print(one_line(f"{candidate.name}: as {first}"))


def rebuild(settings: MergeSettings) -> Path | None:
    """The folder of the soup of a recipe.json, made again bit for bit; None with `plan`, which is only shown.

    Ingredients are looked for by name in `pool.candidates`, then by content in the store, then on the Hub.

    Raises:
        UserError: the recipe cannot be read, an ingredient is not found, or its content is not the recipe's.
    """
    path = settings.recipe
    # Without one, `merge` is called.
    assert path is not None
    with Store(settings.store_path) as store:
        recipe, table = read_recipe(path)
        _check_method(recipe)
        backend = maker(settings.merge, recipe)
        # Digests that the store knows are not used: every byte is read anew, once.
        hashes = dict[str, str]()
        candidates = {c.name: c for c in settings.pool.resolve(at_least=0)}
        home: Path | None = None
        if settings.pool.home:
            home = folder_of(str(settings.pool.home), backend.allow_pickle)
        like = Like(home, rules_of(settings.merge.name_rules), table.get("format") == "same")
        folders = {}
        for name, expected in zip(recipe.ingredients, recipe.fingerprints, strict=True):
            folders[name] = _find(name, expected, recipe, candidates, store, backend, hashes, like)
        backend = _as_written(backend, recipe, table, store, list(folders.values()), hashes)
        with closing(backend.open(folders, hashes, like)) as pool:
            if settings.plan:
                similarity = pool.similarity(recipe.shares)
                _show_plan(settings, pool, recipe, folders, backend.base_model, similarity)
                _show_upload(settings, pool, recipe, path)
                return None
            card = {CARD: _card(settings, recipe, pool, path)}
            with Throughput("soup") as progress:
                return pool.write(recipe, settings.out, progress=progress, extra_files=card)


def _check_method(recipe: Recipe) -> None:
    """Refuse a soup by a user's merge method whose code is missing or has changed."""
    # Methods of souping have no such digest of their code.
    code_digest = recipe.settings.get("source")
    if code_digest is None:
        return
    if recipe.method not in METHODS:
        name = shown(recipe.method)
        raise UserError(
            f"{name} is not a method of souping: name its class, merge._target_=MODULE.CLASS"
        )
    if method_digest(recipe.method) != code_digest:
        raise UserError(
            f"the code of merge.method={recipe.method} is not what made this soup: the file has changed"
        )


def _show_plan(
    settings: MergeSettings,
    pool: CandidatePool,
    recipe: Recipe,
    folders: Folders,
    base: str | None,
    similarity: PoolSimilarity | None,
) -> None:
    """Print and save the plan of a soup, with how similar the weights are, and a mergekit config if there can be one.

    `folders` are {ingredient: folder}, `base` is the folder of the base model.
    """
    from souping.report import tables
    from souping.report.render import show_sheet

    plan = pool.plan(recipe)
    print(plan.describe())
    show_sheet(nonempty([tables.similarity(similarity)]))
    for need in (*settings.merge.needs(), *settings.tracker.needs()):
        print(f"missing on this machine: {need.sentence()}")
    path = dated_path(settings.name, "plan")
    path.parent.mkdir(parents=True, exist_ok=True)
    if plan.save(path, similarity) is not None:
        print(f"saved: {nearby(path)}")
    # `to_yaml` refuses recipes that mergekit cannot express: there is no file then.
    with suppress(UserError):
        places = {name: recipe.sources.get(name, folder) for name, folder in folders.items()}
        text = to_yaml(recipe, places, base)
        file = write_atomically(dated_path(settings.name, "mergekit", ".yml"), text.encode())
        print(f"saved: {nearby(file)}")


def _show_upload(
    settings: MergeSettings, pool: CandidatePool, recipe: Recipe, rebuilt: Path | None = None
) -> None:
    """Print what the upload of the soup would send, if the settings have one.

    `rebuilt` is the recipe.json from which the soup is rebuilt, None for a merge.
    """
    if settings.upload is None:
        return
    from souping.report.render import show_sheet
    from souping.soups.upload import planned_upload

    text = _card(settings, recipe, pool, rebuilt)
    files = {**planned_files(pool, recipe), CARD: text.encode()}
    show_sheet([planned_upload(settings.upload, files, settings.store_path)])


def _card(
    settings: MergeSettings, recipe: Recipe, pool: CandidatePool, rebuilt: Path | None = None
) -> str:
    """The card of a soup. `rebuilt` is the recipe.json from which it is rebuilt, None for a merge: the card beside that
    file is kept if it names this recipe, since the soup has the same bytes."""
    if rebuilt is not None and rebuilt.with_name(CARD).is_file():
        text = text_of(rebuilt.with_name(CARD))
        if recipe.id in text:
            return text
    folder = settings.out.resolve()
    return soup_card(
        recipe_summary(recipe),
        settings.rebuild_command,
        folder,
        pool.base_repo,
        loader=pool.loader,
    )


Fp32Number = Annotated[float, Bounds(gt=-HUGE, lt=HUGE)]
"""A number that arithmetic in fp32 bears."""
Whole = Annotated[int, Bounds(ge=0, lt=2**62)]
Dtypes = Annotated[
    str,
    Form(r"(float32|bfloat16|float16)(\+(float32|bfloat16|float16))*", "float dtypes joined by +"),
]


class RecipeSettings(TypedDict, total=False):
    """Settings of a recipe that souping's backends write."""

    vocab: Vocab
    adapters: Adapters
    rank: Count
    base: str
    by: str
    source: str
    scale: Fp32Number
    overrides: list[tuple[str, list[Fp32Number]]]
    parameters: dict[str, bool | Fp32Number]
    seed: Whole


class RecipeKeys(TypedDict):
    """Keys that every recipe.json has."""

    id: str
    ingredients: list[str]
    fingerprints: list[str]
    weights: list[Fp32Number]
    dtype: Dtypes
    method: str
    settings: RecipeSettings


class RecipeFile(RecipeKeys, total=False):
    """A recipe.json: what its soup was made of, and how it was written."""

    sources: dict[str, str] | None
    carried_from: str | None
    max_shard_size: Annotated[int, Bounds(ge=1, lt=2**62)] | None
    nonfinite: Nonfinite | None
    format: Format | None
    files: dict[str, str]


def read_recipe(path: Path) -> tuple[Recipe, JsonObject]:
    """(recipe, whole content) of a recipe.json, checked for what a rebuild needs.

    Raises:
        UserError: it is not a soup's recipe, or was edited.
    """
    where = f"recipe={path}"
    table: dict[str, Any] = load_json(path, RecipeFile, "recipe", MAX_RECIPE)
    lengths = {len(table[key]) for key in ("ingredients", "fingerprints", "weights")}
    # Smaller than the others if a name stands twice.
    lengths.add(len(set(table["ingredients"])))
    if len(lengths) != 1 or not 0 < min(lengths) <= MOST_INGREDIENTS or not any(table["weights"]):
        raise UserError(
            f"{where}: ingredients (each once), fingerprints and weights must be lists of one length, from 1 to "
            f"{MOST_INGREDIENTS}, and one weight at least not zero"
        )
    settings = table["settings"]
    # Another backend checks its settings itself.
    if settings.get("by") in MAKERS:
        for key in settings:
            pick(key, RecipeSettings.__annotations__, f"{where}: settings")
    recipe = Recipe.from_dict(table)
    if recipe.id != table["id"]:
        raise UserError(
            f"{where}: its content gives id {recipe.id}, not {shown(table['id'])}: the file was edited"
        )
    return recipe, table


def _find(
    name: str,
    expected: str,
    recipe: Recipe,
    candidates: Mapping[str, Candidate],
    store: Store,
    backend: MergeBackend,
    hashes: MutableMapping[str, str],
    like: Like,
) -> Path:
    """The folder of the ingredient `name`: that of a candidate, else as the store knows it, else from the Hub.

    `hashes` {file: digest} caches digests, and `like` has what sharded ingredients lack.

    Raises:
        UserError: the ingredient is not found, or its content does not have the `expected` fingerprint.
    """
    known = store.folder_of(expected)
    if name in candidates:
        path = candidates[name].path
    elif known and is_checkpoint(Path(known)):
        path = Path(known)
    elif name in recipe.sources:
        path = Path(recipe.sources[name])
    else:
        word = shlex.quote(f"pool.candidates=[{{name: {quoted(clean(name))}, path: DIR}}]")
        raise UserError(
            f"ingredient {one_line(name)} ({shown(expected[:12])}) is not known to this store: give its folder, {word}"
        )
    path = folder_of(str(path), backend.allow_pickle)
    actual = content(path, recipe.settings.get("base"), hashes, backend.allow_pickle, like)
    if actual != expected:
        raise UserError(
            f"ingredient {one_line(name)}: {path} has content {actual[:12]}, the recipe {shown(expected[:12])}"
        )
    return path


def _as_written(
    backend: MergeBackend,
    recipe: Recipe,
    table: JsonObject,
    store: Store,
    ingredients: Sequence[Path],
    hashes: MutableMapping[str, str],
) -> MergeBackend:
    """The backend with the settings that the recipe was written with, and with the base model that it names.

    `table` is the whole recipe.json, `ingredients` are the ingredients' folders, and `hashes` {file: digest} caches
    digests. A recipe leaves out settings that have the values below.

    Raises:
        UserError: the base model is not found.
    """
    changes: dict[str, Any] = {
        "scale": 1.0,
        "vocab": "error",
        "adapters": "keep",
        "rank": None,
        "seed": 0,
        "method": recipe.method,
        "tokenizer_from": table.get("carried_from"),
        # Only new recipes are made with these two: this one has its dtype, and tensor weights in its `overrides`.
        "dtype": None,
        "tensor_weights": None,
    }
    for key in ("scale", "vocab", "adapters", "rank", "seed"):
        if key in recipe.settings:
            changes[key] = recipe.settings[key]
    for key in ("max_shard_size", "nonfinite", "format"):
        if table.get(key):
            changes[key] = table[key]
    base = recipe.settings.get("base")
    if base is None:
        return backend.with_settings({**changes, "base_model": None})
    folder = backend.base_model or store.folder_of(base)
    # If a model cannot be fetched, the error below says all that helps.
    with suppress(UserError):
        if folder:
            folder = str(folder_of(folder, backend.allow_pickle))
        else:
            # Adapters name the model that they were trained on.
            folder = with_base(backend, ingredients).base_model
    if folder is None or fingerprint(Path(folder), hashes, backend.allow_pickle) != base:
        raise UserError(
            f"the recipe's base model ({shown(base[:12])}) is not here: set merge.base_model=FOLDER"
        )
    return backend.with_settings({**changes, "base_model": folder})


def free_target(out: Path) -> None:
    """Refuse, before any work, a target that is not empty or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"out={out} exists and is not an empty folder: choose another, or move it away"
        )
    parent = next(p for p in out.absolute().parents if p.exists())
    # Only an attempt tells whether a folder can be made.
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".souping-", dir=parent))
    except OSError as error:
        raise UserError(
            f"out={out}: cannot write below {parent}: {error.strerror}; choose another place"
        ) from error


def soup_in(out: Path) -> Recipe | None:
    """The recipe of the soup in a folder; None if there is none that can be read."""
    try:
        return read_recipe(out / RECIPE)[0]
    except (UserError, OSError):
        return None


def verify(pool: RunPool, recipe: Recipe, out: Path) -> None:
    """Write the soup again to a temporary folder, and compare every file but recipe.json and the card with `out`.

    Raises:
        UserError: a file is missing or differs.
    """
    place = scratch_place(pool.merge_pool.soup_bytes)
    check_space(place, pool.merge_pool.soup_bytes)
    with (
        TemporaryDirectory(prefix=STORED_SOUP_PREFIX, dir=place) as folder,
        hold_folder(Path(folder)),
    ):
        # Without `extra_files` it has no card, which may have changed since.
        copy = pool.merge_pool.write(recipe, Path(folder) / "soup")
        for path in sorted(copy.rglob("*")):
            if not path.is_file() or path.name == RECIPE:
                continue
            earlier = out / path.relative_to(copy)
            if not earlier.is_file() or not filecmp.cmp(path, earlier, shallow=False):
                raise UserError(
                    f"out={out}: {path.name} is not what its recipe makes: move it away, or choose another"
                )
