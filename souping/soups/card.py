"""Model card of a soup: what it is made of, how it is used, and how it is made again."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from souping.checkpoints import hub
from souping.checkpoints.folder import CAUSAL
from souping.core.types import Json
from souping.report.cells import fenced, markdown_table
from souping.report.format import clean, escape_markdown, in_words
from souping.report.recipe import REBUILD, RecipeSummary, recipe_table

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
ANYWHERE = ("merge._target_=", "merge.allow_pickle=", "merge.nonfinite=")
"""Overrides of a rebuild that hold on every machine."""


def soup_card(
    recipe: RecipeSummary,
    rebuild: str | None = None,
    folder: Path = Path("."),
    base: str = "",
    benchmark: str = "",
    result: Sequence[str] = (),
    loader: str = CAUSAL,
) -> str:
    """README.md of a soup, with the Hub's front matter.

    `rebuild` is the run's command that makes the soup again. `base` is the Hub's name of the base model of a soup
    that is an adapter, empty if it has none. `result` are paragraphs on what the soup scored on the `benchmark`.
    `loader` is the class of transformers that loads it. Dates, timings and folders stay out, except the soup's own
    `folder`, in the code that loads it: an upload replaces it by the repository.
    """
    sources = {public_name(name): source for name, source in (recipe.sources or {}).items()}
    names = tuple(public_name(name) for name in recipe.ingredients)
    recipe = replace(recipe, ingredients=names, sources=sources)
    blocks = [
        _front(recipe, base),
        f"# Soup {escape_markdown(recipe.id)}",
        _summary(len(names), benchmark),
        "## Recipe",
        markdown_table(recipe_table(recipe)),
        _method(recipe),
        *result,
        *_usage(recipe, folder, loader),
        *_rebuild(recipe, rebuild, folder),
    ]
    return "\n\n".join(blocks) + "\n"


def public_name(name: Json) -> str:
    """`org/name` and plain names as they are; of any other path the last part, so that no folder of a machine shows."""
    text = clean(name)
    return text if HUB_NAME.fullmatch(text) else re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _summary(size: int, benchmark: str) -> str:
    """What a soup of `size` models is, in a sentence."""
    what = "A copy of one model: the search found no better mixture"
    if size > 1:
        what = f"A weighted average of the weights of {size} models"
    name = escape_markdown(benchmark)
    return f"{what}, made with souping{f' for {name}' if name else ''}."


def _rebuild(recipe: RecipeSummary, command: str | None, folder: Path) -> list[str]:
    """Section on how the soup is made again: by the run's `command`, in the folder where the run was started.

    Without a command or an absolute `folder`, as in an upload, by the command for a copy from the Hub.
    """
    absent = [name for name in recipe.ingredients if name not in (recipe.sources or {})]
    text = REBUILD
    if absent:
        names = escape_markdown(in_words(absent))
        text += (
            f" If it does not find {names}, add `'pool.candidates=[{{name: NAME, path: FOLDER}}]'`."
        )
    line = public_rebuild(clean(command))
    if command and folder.is_absolute():
        line = f"cd {shlex.quote(os.getcwd())} && {command}"
    return ["## Rebuild", text, fenced(line)]


def public_rebuild(command: str, repo: str = "org/soup") -> str:
    """The command that rebuilds a soup from a repository, with what holds on every machine of the run's `command`.

    A user may have edited the command: one that no shell reads has nothing that holds.
    """
    words = list[str]()
    with suppress(ValueError):
        words += filter(lambda word: word.startswith(ANYWHERE), shlex.split(command))
    name = repo.rpartition("/")[2]
    rebuild = f"souping rebuild {name}/recipe.json out={name}-rebuilt"
    return " ".join(
        [f"hf download {repo} --local-dir {name} &&", rebuild, *map(shlex.quote, words)]
    )


def _usage(recipe: RecipeSummary, folder: Path, loader: str) -> list[str]:
    """Section with Python that loads the soup from its folder, and answers if it is a language model."""
    place = f"folder = {json.dumps(str(folder))}  # this folder, or the name of its repository"
    if loader != CAUSAL:
        code = f"""from transformers import AutoProcessor, {loader}

{place}
processor = AutoProcessor.from_pretrained(folder)
model = {loader}.from_pretrained(folder)"""
        return ["## Usage", fenced(code, "python")]
    module = "transformers"
    # The soup is an adapter.
    if recipe.settings.get("adapters") == "keep":
        loader = "AutoPeftModelForCausalLM"
        module = "peft"
    code = f"""from {module} import {loader}
from transformers import AutoTokenizer

{place}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {loader}.from_pretrained(folder)
inputs = tokenizer("Hello", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"""
    return ["## Usage", fenced(code, "python")]


def _method(recipe: RecipeSummary) -> str:
    """The merge method, dtype and settings, in sentences."""
    text = f"Method `{clean(recipe.method)}`, stored as `{clean(recipe.dtype)}`."
    if recipe.settings:
        text += f" Settings: `{json.dumps(recipe.settings, sort_keys=True)}`."
    return text


def _front(recipe: RecipeSummary, base: str) -> str:
    """The front matter, without models that cannot be named on the Hub."""
    import yaml

    table: dict[str, Any] = {
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "souping"],
    }
    repos = [source.partition("@")[0] for source in (recipe.sources or {}).values()]
    parents = list(filter(hub.is_repo, repos))
    if not parents:
        parents = [name for name in recipe.ingredients if HUB_NAME.fullmatch(name)]
    # The soup is an adapter of the base model, which may have no name on the Hub.
    if recipe.settings.get("adapters") == "keep":
        parents = list(filter(None, [base]))
        table |= {"base_model_relation": "adapter", "library_name": "peft"}
        table["tags"] = ["lora", "merge", "souping"]
    if parents:
        table = {"base_model": parents, **table}
    return f"---\n{yaml.dump(table, allow_unicode=True, sort_keys=False).strip()}\n---"
