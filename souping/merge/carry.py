"""What a soup carries beside its weights: config, tokenizer, chat template, recipe."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from souping.core import UserError
from souping.merge.checkpoint import TORCH_NAMES, inside, side_files, small
from souping.merge.header import parse_json
from souping.merge.layout import MergePlan

INDEX_NAME = "model.safetensors.index.json"


def carried(plan: MergePlan) -> dict[str, bytes]:
    """Files by name: the side files of the plan's carrier with the config corrected, `recipe.json` and the index."""
    folder = Path(plan.ingredients[plan.carry].folder)
    try:
        files = {name: small(inside(folder, name)) for name in side_files(folder)}
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    if "config.json" not in files:
        raise UserError(f"{folder} has lost its config.json since the plan was made: plan again")
    files["config.json"] = _config(plan, folder, files["config.json"])
    files["recipe.json"] = recipe_text(plan).encode()
    index = plan.index()
    return {**files, INDEX_NAME: index} if index is not None else files


def recipe_text(plan: MergePlan) -> str:
    """The recipe's JSON form, with what else decides the bytes of the folder."""
    carrier = plan.ingredients[plan.carry].name
    table = {**plan.recipe.as_dict(), "carried_from": carrier, "max_shard_size": plan.max_shard_size}
    return json.dumps(table, indent=2) + "\n"


def _config(plan: MergePlan, folder: Path, raw: bytes) -> bytes:
    """config.json with the soup's dtype and vocabulary; its very bytes where both are right already."""
    before: dict[str, Any] = parse_json(folder / "config.json", raw)
    after = copy.deepcopy(before)
    if plan.dtype in TORCH_NAMES:
        _set_dtype(after, plan.dtype)
    if plan.vocab_size is not None:
        for part in _parts(after):
            if "vocab_size" in part:
                part["vocab_size"] = plan.vocab_size
    return raw if after == before else (json.dumps(after, indent=2) + "\n").encode()


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config and the text model's config inside it."""
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Under the name the config uses (`dtype`, or `torch_dtype` before transformers 5)."""
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    for part in _parts(config):
        for key in keys:
            if part is config or key in part:
                part[key] = dtype
