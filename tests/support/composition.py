"""Hydra without the work that it repeats when one process starts many commands.

Two thirds of the time of a refused command go into reading, listing and merging the same files of `conf/`. With
`compose_once` that happens once in a session for equal choices. Commands that use a configuration of their own
(`--config-dir`, `hydra.searchpath`) are composed as Hydra does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import hydra
import pytest
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from souping.cli.commands import OVERLAY, root_of
from souping.core.system import conf_folder

SHIPPED = {"hydra", "main", "schema"}
"""Providers of files that no test writes."""
SETTINGS = OVERLAY.lstrip("+").replace("=", "/")
"""The values of a test's file of settings."""
FILES: dict[tuple[str, ...], ConfigResult | None] = {}
LISTS: dict[tuple[str, ...], DefaultsList] = {}
CONFIGS: dict[tuple[str, ...], DictConfig] = {}
"""Files, lists and merged configurations of this session."""
load = ConfigRepository.load_config
make_list = defaults_list.create_defaults_list
merge = ConfigLoaderImpl._compose_config_from_defaults_list


def shipped(repo: IConfigRepository) -> tuple[str, ...]:
    """Places of the files in use; empty if some belong to a test."""
    sources = repo.get_sources()
    if any(source.provider not in SHIPPED for source in sources):
        return ()
    return tuple(f"{source.provider} {source.path}" for source in sources)


def loaded(repo: ConfigRepository, config_path: str) -> ConfigResult | None:
    """As `load_config`; a test's file of settings is never kept."""
    places = shipped(repo)
    key = ("file", *places, config_path)
    if not places or config_path == SETTINGS or key not in FILES:
        FILES[key] = load(repo, config_path)
    return FILES[key]


def listed(
    repo: IConfigRepository, config_name: str, overrides_list: list[Override], **flags: bool
) -> DefaultsList:
    """As `create_defaults_list`. Overrides of values (`seed=3`) change no list, so they are no part of the key."""
    places = shipped(repo)
    given = defaults_list.Overrides(repo, overrides_list)
    values = {id(override) for override in given.config_overrides}
    chosen = [str(override.input_line) for override in overrides_list if id(override) not in values]
    key = ("list", *places, config_name, *map(str, flags.values()), *chosen)
    if not places or key not in LISTS:
        LISTS[key] = make_list(repo, config_name, overrides_list, **flags)
    return replace(LISTS[key], config_overrides=given.config_overrides)


class Copies(ConfigRepository):
    """Copies of a repository's files: Hydra's merge moves their nodes into the result."""

    def __init__(self, repo: IConfigRepository) -> None:
        self.repo = repo
        self.sources = repo.get_sources()

    def load_config(self, config_path: str) -> ConfigResult | None:
        return deepcopy(self.repo.load_config(config_path))


def merged(
    loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
) -> DictConfig:
    """As Hydra merges it; a test's file of settings is never kept."""
    places = shipped(repo)
    entries = [f"{entry.config_path} {entry.package} {entry.parent}" for entry in defaults]
    key = ("merge", *places, *entries)
    of_test = any(entry.config_path == SETTINGS for entry in defaults)
    if not places or of_test or key not in CONFIGS:
        CONFIGS[key] = merge(loader, defaults, Copies(repo))
    return deepcopy(CONFIGS[key])


def compose_once() -> None:
    """For the whole session: nothing takes this back."""
    patch = pytest.MonkeyPatch()
    patch.setattr(ConfigRepository, "load_config", loaded)
    patch.setattr(config_loader_impl, "create_defaults_list", listed)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merged)


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line would run with these overrides, as plain data, checked."""
    from souping.cli import parts

    plain = unchecked(overrides)
    parts.build(plain)
    return plain


def unchecked(overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line would check and run with these overrides, as plain data."""
    from souping.cli import config_keys

    config_keys.register()
    root = root_of(overrides)
    with hydra.initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        cfg = hydra.compose(root, list(overrides))
        config_keys.drop_replaced(cfg, root, overrides)
        return config_keys.resolved(cfg)
