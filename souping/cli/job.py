"""Job of a run or a merge: Hydra composes it; this file claims its folder, builds its components and runs it."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from souping.cli.advice import VALUE, value_advice
from souping.cli.choice_files import choices
from souping.cli.commands import SETTINGS_FILES, command_line, root_of
from souping.cli.config_keys import (
    CHOSEN,
    FREE,
    drop_replaced,
    has_folder,
    is_key,
    is_merge,
    refuse_run_keys,
    register,
    resolved,
)
from souping.cli.errors import format_error
from souping.cli.process import DEBUG, interrupts_raise, stop
from souping.cli.run_folder import CLAIM, claim, discard_refused
from souping.cli.settings_from_config import as_yaml, merge_settings, run_settings, unresolved
from souping.cli.sweep import note_job
from souping.core.files import write_atomically
from souping.core.system import conf_folder, program
from souping.core.types import UserError
from souping.core.unit import POINTS, Unit
from souping.report.progress import logged, show_warnings
from souping.runs.settings import RunSettings
from souping.soups.settings import MergeSettings, SoupSettings


def start() -> None:
    """Compose and run the command line, once or, with `-m`, for each combination."""
    register()
    _refuse_values(sys.argv[1:])
    _compose_once()
    root = get_args_parser().parse_args().config_name or root_of(sys.argv[1:])
    if root == "merge":
        from_file = chain.from_iterable(file.keys for file in SETTINGS_FILES)
        refuse_run_keys([*sys.argv[1:], *from_file])
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=root)(run_job)()


def _refuse_values(words: Sequence[str]) -> None:
    """Refuse a list, a mapping or a number in place of a choice's name (UserError): Hydra's error would be no help."""
    for word in words:
        group, _, value = word.partition("=")
        # A list of choices is no mistake, and one of analyses may name a user's own.
        names = set(re.findall(r"[^\[\], ]+", value))
        takes_list = group == "analysis" and value.startswith("[")
        if (
            group in CHOSEN
            and not takes_list
            and VALUE.fullmatch(value)
            and not names <= set(choices(group))
        ):
            advice = value_advice(group, value) or f"{group}={' or '.join(choices(group))}"
            raise UserError(f"{word:.60} is not the name of a choice: write {advice}")


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(Hydra's options with their values, all other words) of a command line, on which they stand in any order.

    Raises:
        UserError: Hydra has no such option, or it lacks its value.
    """

    # In place of argparse's `error`, which exits.
    def refuse(message: str) -> NoReturn:
        advice = f"options: {program()} --hydra-help"
        if match := re.search(r"arguments: --([\w.]+)[ =]?(\S*)", message):
            advice = f"settings have no dashes: write {match[1]}={match[2] or 'VALUE'}"
        raise UserError(f"{message}; {advice}")

    parser = get_args_parser()
    setattr(parser, "error", refuse)  # noqa: B010  # what mypy takes for a mistake
    overrides = parser.parse_intermixed_args(words).overrides
    return [word for word in words if word not in overrides], overrides


def opened(word: str) -> str:
    """An override that may add entries to a mapping, with the two pluses that Hydra wants for that.

    Without them it takes known entries alone, also where the keys are a user's or another tool's (`engine.args`).
    """
    key, _, value = word.partition("=")
    names = key.split(".")
    sets_mapping = is_key(names) and value.lstrip().startswith("{")
    sets_entry = is_key(names[:-1])
    # All other root keys hold one value of a type that Hydra checks.
    if names[0] in (*FREE, "analysis") and (sets_mapping or sets_entry):
        return f"++{word}"
    return word


def _compose_once() -> None:
    """Spare Hydra a composition that only looks for `hydra.mode`, unless a word of the command line may set that."""
    if not any("hydra" in word or word.startswith(("-c", "--c")) for word in sys.argv[1:]):
        setattr(Hydra, "get_mode", lambda *_, **__: None)  # noqa: B010  # mypy takes it for a mistake


def run_job(cfg: DictConfig) -> float | None:
    """Run one job. Returns the objective on the search split, so that any Hydra sweeper can drive jobs.

    The objective is in the evaluator's unit: a sweep over a loss has to minimise it (`souping.cli.sweep.check_goal`).
    It is None if a job of a sweep failed: Optuna's sweeper goes on after that, while nan ends it. An error of a single
    job ends the process.
    """
    # The imports are done: the collector, off until now, need not scan their objects.
    gc.freeze()
    gc.enable()
    interrupts_raise()
    hydra_config = HydraConfig.get()
    sweep = _sweep_name(hydra_config)
    # A claimed folder is this job's own. Every job of a sweep has one; of single jobs, only a run has.
    claimed = bool(sweep) or has_folder(cfg)
    run_dir = Path(cfg.out or f"outputs/{cfg.name}")
    if claimed:
        # As it stands: a folder's name may hold ${...}.
        run_dir = claim(Path(unresolved(hydra_config.runtime)["output_dir"]))
    try:
        objective, unit = _run(cfg, run_dir, sweep)
        if sweep:
            note_job(unit, run_dir, hydra_config, cfg.get("dry_run"), objective)
        return objective
    except Exception as error:
        if os.environ.get(DEBUG):
            _discard(run_dir, claimed, error)
            raise
        words, code = format_error(error, run_dir if claimed else None)
        _discard(run_dir, claimed, error)
        if sweep:
            print(f"job {hydra_config.job.num}: {words}", file=sys.stderr)
            # The unit may not be known: the evaluator may not have been built.
            note_job(POINTS, run_dir, hydra_config, cfg.get("dry_run"), None, words)
            return None
        # Not further up: Hydra would add a line of its own.
        stop(words, code)
    finally:
        if claimed:
            (run_dir / CLAIM).unlink(missing_ok=True)


def _discard(run_dir: Path, claimed: bool, error: Exception) -> None:
    """Remove the folder of a job that was refused, if the job claimed one."""
    if claimed:
        discard_refused(run_dir, error)


def _run(cfg: DictConfig, run_dir: Path, sweep: str | None) -> tuple[float | None, Unit]:
    """(objective on the search split, its unit) of a run; a merge has no objective.

    `sweep` is the name of the multirun that this job is part of, None for a single job.
    """
    show_warnings()
    plain = _configuration(cfg, sweep)
    claimed = bool(sweep) or has_folder(plain)
    action = plain["action"]
    if is_merge(plain):
        if action["check"]:
            raise UserError(
                "check: a merge evaluates nothing; `plan merge ...` shows what it would do"
            )
        settings = merge_settings(plain, run_dir, numbered=bool(sweep))
        with _recorded(settings, claimed):
            _merge(settings, action["names"])
        return None, POINTS
    run = run_settings(plain, run_dir)
    with _recorded(run, claimed):
        return _perform(run, action["names"], action["check"]), run.evaluator.unit


def _merge(settings: MergeSettings, shows_names: bool) -> None:
    """Merge, or only show which tensors a merge would read."""
    from souping.soups.merge_only import execute_merge, show_names

    if shows_names:
        show_names(settings)
    else:
        execute_merge(settings)


def _perform(settings: RunSettings, shows_names: bool, checks: bool) -> float | None:
    """Run, or only show tensor names, check or plan; the objective on the search split, None without a search."""
    if shows_names:
        from souping.soups.merge_only import show_names

        show_names(settings)
        return None
    if checks:
        from souping.plan.checked_run import check_run

        check_run(settings)
        return None
    if settings.plan:
        from souping.plan.planner import plan

        plan(settings)
        return None
    from souping.runs.execute import execute

    return execute(settings).objective


def _recorded(settings: SoupSettings, claimed: bool) -> AbstractContextManager[None]:
    """If the job has a folder, write config.yaml now and run.log while the block runs."""
    if not claimed:
        return nullcontext()
    content = as_yaml(settings.config).encode("utf-8", "backslashreplace")
    write_atomically(settings.run_dir / "config.yaml", content)
    words = " ".join(map(str, unresolved(HydraConfig.get().overrides)["task"]))
    return logged(settings.run_dir, command_line(), words or "none")


def _configuration(cfg: DictConfig, sweep: str | None) -> dict[str, Any]:
    """The configuration of a job as plain data, without an overlay's settings for components that the user replaced."""
    hydra_config = HydraConfig.get()
    overrides = unresolved(hydra_config.overrides)
    paths = [word for word in map(str, overrides["hydra"]) if word.startswith("hydra.searchpath=")]
    words = list(map(str, overrides["task"]))
    drop_replaced(cfg, str(hydra_config.job.config_name), words, paths)
    plain = resolved(cfg)
    if sweep:
        # `out` is the folder of the multirun: the job's is inside.
        plain["out"] = None
    # Jobs of a multirun share a group in the tracker, unless the user named one.
    if sweep and isinstance(plain["tracker"], dict) and plain["tracker"].get("group", "") is None:
        plain["tracker"]["group"] = sweep
    return plain


def _sweep_name(hydra_config: HydraConf) -> str | None:
    """The name that the jobs of a multirun share, that of its folder; None if this is a single job."""
    if not str(hydra_config.mode).endswith("MULTIRUN"):
        return None
    return Path(hydra_config.sweep.dir).name
