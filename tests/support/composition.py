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
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository

from souping.cli.commands import OVERLAY, root_of
from souping.core.system import conf_folder

SHIPPED = {"hydra", "main", "schema"}
"""Providers of files that no test writes."""
SETTINGS = OVERLAY.lstrip("+").replace("=", "/")
"""The values of a test's file of settings."""
KEPT: dict[tuple[str, ...], Any] = {}
"""Files, lists and merged configurations of this session."""
load = ConfigRepository.load_config
make_list = defaults_list.create_defaults_list
merge = ConfigLoaderImpl._compose_config_from_defaults_list


def shipped(repo: Any) -> tuple[str, ...]:
    """Places of the files in use; empty if some belong to a test."""
    sources = repo.get_sources()
    own = any(source.provider not in SHIPPED for source in sources)
    return () if own else tuple(f"{source.provider} {source.path}" for source in sources)


def loaded(repo: Any, config_path: str) -> Any:
    places = shipped(repo)
    key = ("file", *places, config_path)
    if not places or config_path == SETTINGS or key not in KEPT:
        KEPT[key] = load(repo, config_path)
    return KEPT[key]


def listed(repo: Any, config_name: str, overrides_list: Sequence[Any], **flags: bool) -> Any:
    places = shipped(repo)
    given = defaults_list.Overrides(repo, overrides_list)
    values = {id(one) for one in given.config_overrides}
    chosen = (one.input_line for one in overrides_list if id(one) not in values)
    key = ("list", *places, config_name, *map(str, flags.values()), *chosen)
    if not places or key not in KEPT:
        KEPT[key] = make_list(repo, config_name, overrides_list, **flags)
    return replace(KEPT[key], config_overrides=given.config_overrides)


class Copies:
    """Copies of a repository's files: Hydra's merge moves their nodes into the result."""

    def __init__(self, repo: Any) -> None:
        self.repo = repo

    def load_config(self, config_path: str) -> Any:
        return deepcopy(self.repo.load_config(config_path))

    def get_schema_source(self) -> Any:
        return self.repo.get_schema_source()


def merged(loader: Any, defaults: Sequence[Any], repo: Any) -> Any:
    places = shipped(repo)
    key = ("merge", *places, *(f"{one.config_path} {one.package} {one.parent}" for one in defaults))
    own = any(one.config_path == SETTINGS for one in defaults)
    if not places or own or key not in KEPT:
        KEPT[key] = merge(loader, defaults, Copies(repo))
    return deepcopy(KEPT[key])


def compose_once() -> None:
    ConfigRepository.load_config = loaded
    config_loader_impl.create_defaults_list = listed
    ConfigLoaderImpl._compose_config_from_defaults_list = merged


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line would run with these overrides, as plain data, checked."""
    from souping.cli import parts

    plain = unchecked(overrides)
    parts.build(plain)
    return plain


def unchecked(overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line would check and run with these overrides, as plain data."""
    from souping.cli import config

    config.register()
    root = root_of(overrides)
    with hydra.initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        cfg = hydra.compose(root, list(overrides))
        config.drop_replaced(cfg, root, overrides)
        return config.resolved(cfg)
