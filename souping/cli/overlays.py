"""Overlays (`conf/experiment`): their settings of a part do not carry over to the part that replaces it.

Hydra merges an overlay after the groups' choices, whatever those are: `+experiment=mgsm selector=topk` would hand TopK
the overlay's settings for SoCE.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import GroupDefault, ResultDefault
from omegaconf import DictConfig

merge_defaults = ConfigLoaderImpl._compose_config_from_defaults_list
OPEN = re.compile(r"None|\?\?\?|\$\{\w+\}")
"""Values that a choice's file leaves open: null, ??? and the part that another group chooses (`${objective}`)."""


def drop_settings_of_replaced_choices(groups: Collection[str]) -> None:
    """Make Hydra's composition do it for these groups. Overrides come later, so what the user types is not touched."""

    def compose(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        config = merge_defaults(loader, defaults, repo)
        parts = [default for default in defaults if str(default.config_path).partition("/")[0] in groups]
        replaced = _chosen(parts) - _named(defaults, repo)
        plain = merge_defaults(loader, parts, repo) if replaced else {}
        for group in {group for group, _ in replaced}:
            merged, own = (dict(whole[group].items_ex(resolve=False)) for whole in (config, plain))
            config[group] = {key: merged[key] if OPEN.fullmatch(str(value)) else value for key, value in own.items()}
        return config

    setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose)  # noqa: B010  # as in job.py


def _chosen(parts: list[ResultDefault]) -> set[tuple[str, str]]:
    """(group, choice) in force; a choice that builds on another of its group counts by its own name."""
    paths = [(str(part.config_path).partition("/"), str(part.parent)) for part in parts]
    return {(group, choice) for (group, _, choice), parent in paths if not parent.startswith(f"{group}/")}


def _named(defaults: list[ResultDefault], repo: Any) -> set[tuple[str, str]]:
    """(group, choice) that files name in their defaults lists; the root's where no other file says otherwise."""
    files = [(default.primary, repo.load_config(default.config_path).defaults_list or []) for default in defaults]
    groups = [(primary, entry) for primary, entries in files for entry in entries if isinstance(entry, GroupDefault)]
    pairs = [(primary, (str(entry.group).strip("/"), str(entry.value))) for primary, entry in groups]
    others = {pair for primary, pair in pairs if not primary}
    said = {group for group, _ in others}
    return others | {pair for primary, pair in pairs if primary and pair[0] not in said}
