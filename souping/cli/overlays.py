"""Overlays (`conf/experiment`): their settings of a part do not carry over to the part that replaces it.

Hydra merges an overlay after the groups' choices, whatever those are: `+experiment=mgsm selector=topk` would hand TopK
the overlay's settings for SoCE.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

merge_defaults = ConfigLoaderImpl._compose_config_from_defaults_list


def drop_settings_of_replaced_choices(groups: Collection[str]) -> None:
    """Make Hydra's composition do it for these groups. Overrides come later, so what the user types is not touched."""

    def compose(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        config = merge_defaults(loader, defaults, repo)
        files = {str(default.config_path): repo.load_config(default.config_path) for default in defaults}
        root = next((str(default.config_path) for default in defaults if default.primary), "")
        choices = _choices(defaults, groups)
        expected = _named([files[root]] if root else []) | _named([files[path] for path in files if path != root])
        replaced = [group for group in choices if choices[group] not in expected.get(group, {choices[group]})]
        if replaced:
            parts = [default for default in defaults if str(default.config_path).partition("/")[0] in groups]
            plain = OmegaConf.to_container(merge_defaults(loader, parts, repo), resolve=False)
            assert isinstance(plain, dict)
            for group in replaced:
                config[group] = _without_overlay(OmegaConf.to_container(config[group], resolve=False), plain[group])
        return config

    setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose)  # noqa: B010  # as in job.py


def _choices(defaults: Sequence[ResultDefault], groups: Collection[str]) -> dict[str, str]:
    """{group: choice in force}; a choice that builds on another of its group counts by its own name."""
    paths = [(str(default.config_path).partition("/"), str(default.parent)) for default in defaults]
    return {group: choice for (group, _, choice), parent in paths if group in groups and f"{group}/" not in parent}


def _named(files: Sequence[ConfigResult]) -> dict[str, set[str]]:
    """{group: choices that the defaults lists of these files name}."""
    named: dict[str, set[str]] = {}
    for file in files:
        for entry in file.defaults_list or []:
            if isinstance(entry, GroupDefault):
                named.setdefault(str(entry.group).strip("/"), set()).add(str(entry.value))
    return named


def _without_overlay(merged: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """A choice's own settings, and the overlay's values of those that the choice leaves open."""
    return {key: merged[key] if _is_open(value) else value for key, value in own.items()}


def _is_open(value: Any) -> bool:
    """Whether a file gives no value of its own: null, ???, or the part that another group chooses (`${objective}`)."""
    return value is None or (isinstance(value, str) and re.fullmatch(r"\?\?\?|\$\{\w+\}", value) is not None)
