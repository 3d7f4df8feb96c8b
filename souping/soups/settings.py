"""Settings of a soup, and of a merge by given weights: its components and root settings."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from souping.checkpoints import hub
from souping.checkpoints.layouts import rules_of
from souping.checkpoints.pool import CandidateSource
from souping.core import protocols
from souping.core.files import OUTPUTS, nearby
from souping.core.reading import read
from souping.core.system import program
from souping.core.types import Json, JsonObject, UserError, frozen
from souping.merge.backend import MergeBackend
from souping.report.format import clean, quoted

STORE = OUTPUTS / "store.sqlite"
"""The default of `store`."""


@frozen
class Target:
    """Model repository for a soup. A repository that does not exist is created, `private` or public."""

    repo: str
    private: bool = False


def target(value: Json) -> Target:
    """The target of the configuration's `upload`: org/name, or {repo: org/name, private: true}.

    Raises:
        UserError: it is neither.
    """
    table = {"repo": value} if isinstance(value, str) else value
    if isinstance(table, Mapping) and set(table) <= {"repo", "private"}:
        repo = table.get("repo")
        private = table.get("private", False)
        if isinstance(repo, str) and hub.is_repo(repo) and isinstance(private, bool):
            return Target(repo=repo, private=private)
    raise UserError(
        f"upload={value} must be org/name as the Hub allows it, or {{repo: org/name, private: true}}"
    )


@frozen
class PoolConfig:
    """What a rebuild repeats of a configuration's `pool`."""

    reference_model: str | None = None


@frozen
class MergeConfig:
    """What a rebuild repeats of a configuration's `merge`."""

    _target_: str = "souping."
    python: str | None = None
    allow_pickle: bool = False


@frozen
class SoupSettings:
    """What a soup needs: the components and root settings that runs and merges share.

    `out` is the folder of the soup, `run_dir` that of the other files. `config` is the configuration as it is recorded,
    `command` the typed command. With `plan`, nothing is evaluated or written.
    """

    pool: CandidateSource
    optimiser: protocols.Optimiser
    merge: MergeBackend
    tracker: protocols.Tracker
    name: str
    seed: int
    plan: bool = False
    upload: Target | None = None
    out: Path
    store_path: Path
    run_dir: Path
    config: JsonObject
    command: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def rebuild_command(self) -> str:
        """Command that makes the soup in `out` again, run where this run was started.

        It repeats what a recipe.json does not hold: where things are, and what may run code.
        """
        merge = read(MergeConfig, self.config.get("merge"))
        settings = {"out": "rebuilt"}
        if self.store_path != STORE:
            settings["store"] = nearby(self.store_path)
        if merge.python:
            settings |= {"merge": "mergekit", "merge.python": merge.python}
        # A merge method of the user's own.
        if not merge._target_.startswith("souping."):
            settings["merge._target_"] = merge._target_
        if file := rules_of(self.merge.name_rules):
            settings["merge.name_rules"] = nearby(file)
        # A folder, or a name on the Hub.
        if model := read(PoolConfig, self.config.get("pool")).reference_model:
            settings["pool.reference_model"] = (
                nearby(Path(model)) if Path(model).is_dir() else model
            )
        if base := self.merge.base_model:
            settings["merge.base_model"] = nearby(Path(base)) if Path(base).is_dir() else base
        words = [shlex.quote(f"{key}={quoted(clean(value))}") for key, value in settings.items()]
        if merge.allow_pickle:
            words.append("merge.allow_pickle=true")
        recipe = shlex.quote(nearby(self.out / "recipe.json"))
        return f"{program()} rebuild {recipe} {' '.join(words)}"


@frozen
class MergeSettings(SoupSettings):
    """Settings of a merge by given weights, or of a `recipe` that is rebuilt: nothing is evaluated."""

    recipe: Path | None = None
