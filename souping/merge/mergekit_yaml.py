"""Recipes of linear, task_arithmetic and slerp as mergekit's YAML, with `normalize: false` and fp32 arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from souping.checkpoints.header import TORCH_NAMES
from souping.core.types import Json, JsonObject, Recipe, UserError

EXPORTED_METHODS = ("linear", "task_arithmetic", "slerp")
"""Methods that can be exported."""


def document_of(recipe: Recipe, paths: Sequence[str]) -> dict[str, Json]:
    """What all YAML of a recipe has: method, dtypes, and the ingredients with their weights.

    `paths` are the ingredients' folders. The folder of a base model may follow; it is left out.
    """
    # A base model has no weight.
    pairs = zip(paths, recipe.weights, strict=False)
    models: list[Json] = [
        {"model": path, "parameters": {"weight": weight}} for path, weight in pairs
    ]
    document: dict[str, Json] = {"merge_method": recipe.method, "models": models}
    if recipe.dtype in TORCH_NAMES:
        document |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return document


def dump(document: JsonObject) -> str:
    import yaml

    return str(yaml.safe_dump(document, sort_keys=False))


def to_yaml(
    recipe: Recipe, folders: Mapping[str, Path | str], base: Path | str | None = None
) -> str:
    """mergekit's YAML for a recipe; models are named by their folders.

    Raises:
        UserError: the method, vocabulary rule or per-pattern weights have no counterpart there.
    """
    if recipe.method not in EXPORTED_METHODS:
        raise UserError(
            f"merge.method={recipe.method} has no export to mergekit: only {', '.join(EXPORTED_METHODS)} have"
        )
    for setting, key in (("overrides", "tensor_weights"), ("vocab", "vocab")):
        if setting in recipe.settings:
            raise UserError(
                f"merge.{key} has no counterpart in mergekit's YAML: export a recipe without it"
            )
    paths = [str(folders[name]) for name in recipe.ingredients]
    document = document_of(recipe, paths)
    # mergekit takes the weights as they are, as souping does.
    parameters: dict[str, Json] = {"normalize": False}
    # mergekit's slerp has no weights: it goes the share t of the way from the base to the other model.
    if recipe.method == "slerp":
        models: list[Json] = [{"model": path} for path in paths]
        document |= {"models": models, "base_model": paths[0]}
        parameters = {"t": recipe.weights[1] / sum(recipe.weights)}
    if recipe.method == "task_arithmetic":
        if base is None:
            raise UserError(
                "merge.method=task_arithmetic needs the base model: set merge.base_model=FOLDER"
            )
        document["base_model"] = str(base)
        parameters["lambda"] = float(recipe.settings.get("scale", 1.0))
    return dump(document | {"parameters": parameters})
