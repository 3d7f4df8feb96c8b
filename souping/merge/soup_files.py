"""Files beside the weights of a soup: config, tokenizer, chat template, index, recipe."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from souping.checkpoints.end_tokens import GENERATION, eos_token_ids
from souping.checkpoints.folder import INDEX
from souping.checkpoints.header import TORCH_NAMES, inside, json_object, parse_json, small
from souping.checkpoints.quantised import plain_config
from souping.core.folders import STAGING_MARK, write_files
from souping.core.types import Recipe, UserError
from souping.merge import CandidatePool, Extra, Nonfinite
from souping.merge.plan import MergePlan, check_ingredients

CARD = "README.md"
RECIPE = "recipe.json"
HASHED = 64 << 20
"""Bytes of the largest file whose digest recipe.json has."""


def write_soup_files(stage: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the files beside a soup's weights. recipe.json lists them all but itself and the card."""
    write_files(stage, files)
    names = {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()}
    listed = {
        name: file_mark(stage / name) for name in sorted(names - {RECIPE, CARD, STAGING_MARK})
    }
    write_files(stage, {RECIPE: with_marks(files[RECIPE], listed)})


def with_marks(recipe: str | bytes, marks: Mapping[str, str]) -> bytes:
    """The recipe.json of a soup with the {file: mark} of its folder."""
    return (json.dumps({**json.loads(recipe), "files": marks}, indent=2) + "\n").encode()


def planned_files(pool: CandidatePool, recipe: Recipe) -> dict[str, bytes | int]:
    """The files of a soup that is not written: {name: content, or the size of weights in bytes}."""
    plan = pool.plan(recipe)
    planned = dict[str, bytes | int]()
    if recipe.settings.get("adapters") == "keep":
        # Adapters are small enough to be written.
        with TemporaryDirectory() as folder:
            soup = pool.write(recipe, Path(folder) / "soup")
            for path in filter(Path.is_file, soup.rglob("*")):
                planned[str(path.relative_to(soup))] = path.read_bytes()
    elif isinstance(plan, MergePlan) and plan.frame is None:
        for shard, name in enumerate(plan.shards):
            planned[name] = len(plan.header(shard)) + plan.shard_bytes(shard)
        files = companion_files(plan)
        # Digests are known once the files are written.
        marks = dict.fromkeys(sorted({*planned, *files} - {RECIPE}), "0" * 64)
        planned |= {**files, RECIPE: with_marks(files[RECIPE], marks)}
    else:
        planned["all weights, at most"] = pool.soup_bytes
        planned[RECIPE] = with_marks(json.dumps(recipe.as_dict()), {})
    return planned


def file_mark(path: Path) -> str:
    """What recipe.json lists of a file: its SHA-256 (hex), or its size if it takes long to hash."""
    size = path.stat().st_size
    if size > HASHED:
        return f"{size} bytes"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def soup_files(plan: MergePlan, extra: Extra = None) -> dict[str, str | bytes]:
    """{name: content} of the files beside the weights of a plan's soup (UserError: an ingredient has changed)."""
    check_ingredients(plan.ingredients)
    return with_extra(companion_files(plan), plan.shards, extra)


def with_extra(
    files: Mapping[str, str | bytes], weights: Iterable[str], extra: Extra
) -> dict[str, str | bytes]:
    """The model's files and the extra ones, which must not replace any of them or of its `weights` (UserError)."""
    if not extra:
        return dict(files)
    replaced = {*files, *weights} & set(extra)
    if replaced:
        raise UserError(f"the extra file {min(replaced)} would replace a file of the model")
    return {**files, **extra}


def companion_files(plan: MergePlan) -> dict[str, bytes]:
    """{name: content}: side files of the tokenizer's source with the soup's config, recipe.json, and the index.

    In the layout of a trainer (`plan.frame`), recipe.json alone: the frame has the others.
    """
    source = plan.ingredients[plan.tokenizer_from]
    same = plan.frame is not None
    text = recipe_text(plan.recipe, source.name, plan.nonfinite, plan.max_shard_size, same=same)
    recipe = text.encode()
    if same:
        return {RECIPE: recipe}
    index = plan.index()
    files = {} if index is None else {INDEX: index}
    # A file of `torch.save` has no config.
    if not source.checkpoint.side:
        return {**files, RECIPE: recipe}
    folder = source.checkpoint.home
    files |= {name: small(inside(folder, name)) for name in source.checkpoint.side}
    if "config.json" not in files:
        raise UserError(f"{folder} has lost its config.json since the plan was made: plan again")
    # A base model, which comes after the recipe's ingredients, says nothing about how answers end.
    ingredients = plan.ingredients[: len(plan.recipe.ingredients)]
    homes = [i.checkpoint.home for i in ingredients if i.checkpoint.side]
    files |= generation_config(folder, homes, plan.vocab_size)
    files["config.json"] = _config(plan, folder, files["config.json"])
    files[RECIPE] = recipe
    return files


def generation_config(
    folder: Path, ingredients: Iterable[Path], rows: int | None = None
) -> dict[str, bytes]:
    """{generation_config.json: content} of `folder` with the end tokens of all `ingredients` (folders).

    {} if `folder` has these tokens already, or if there are none. Tokens beyond the soup's `rows` are left out.
    """
    tokens = set[int]()
    for ingredient in ingredients:
        tokens.update(eos_token_ids(ingredient))
    ends = sorted(token for token in tokens if rows is None or token < rows)
    if not ends or tuple(ends) == eos_token_ids(folder):
        return {}
    path = inside(folder, GENERATION)
    if path.is_file():
        table = json_object(path)
    else:
        config = json_object(folder / "config.json")
        table = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
    table["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return {GENERATION: (json.dumps(table, indent=2) + "\n").encode()}


def recipe_text(
    recipe: Recipe,
    tokenizer_source: str,
    nonfinite: Nonfinite,
    max_shard_size: int | None = None,
    *,
    same: bool = False,
) -> str:
    """The recipe as JSON, with what else decides the bytes of the folder. `same` is merge.format=same."""
    table = {**recipe.as_dict(), "carried_from": tokenizer_source}
    if max_shard_size is not None:
        table["max_shard_size"] = max_shard_size
    if same:
        table["format"] = "same"
    if nonfinite != "error":
        table["nonfinite"] = nonfinite
    return json.dumps(table, indent=2) + "\n"


def _config(plan: MergePlan, folder: Path, raw: bytes) -> bytes:
    """config.json (`raw`) with the soup's dtype and vocabulary, not quantised; `raw` itself if nothing changes."""
    before: dict[str, Any] = parse_json(folder / "config.json", raw)
    after = copy.deepcopy(plain_config(before))
    parts = {key: part for key, part in after.items() if isinstance(part, dict)}
    if plan.dtype in TORCH_NAMES:
        # transformers renamed the key: set the one that the config has, by default the older one.
        keys = [key for key in ("dtype", "torch_dtype") if key in after] or ["torch_dtype"]
        after |= dict.fromkeys(keys, plan.dtype)
        # The models of texts, images and sound have configs of their own.
        for part in parts.values():
            part |= {key: plan.dtype for key in keys if key in part}
    if plan.vocab_size is not None:
        for table in (after, parts.get("text_config", {})):
            if "vocab_size" in table:
                table["vocab_size"] = plan.vocab_size
    if after == before:
        return raw
    return (json.dumps(after, indent=2) + "\n").encode()
