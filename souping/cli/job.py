"""Job of a run: Hydra composes it; this file claims its folder, builds its components and runs it."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from souping.checkpoints.layouts import shows
from souping.cli.advice import VALUE, value_advice
from souping.cli.config import GROUPS, drop_replaced, register, resolved
from souping.cli.errors import format_error
from souping.cli.help import choices, folder
from souping.cli.process import interrupts_raise, stop
from souping.cli.run_folder import CLAIM, claim, discard_refused
from souping.cli.settings import as_yaml, settings_of, unresolved
from souping.cli.sweep import note_job
from souping.core.files import write_atomically
from souping.core.types import UserError
from souping.core.unit import POINTS, Unit
from souping.pipeline.settings import MergeSettings, RunSettings
from souping.report.progress import command_line, logged, show_warnings


def start() -> None:
    """Compose and run the command line, once or, with `-m`, for each combination."""
    register()
    sys.argv[1:] = options_first(sys.argv[1:])
    _refuse_values(sys.argv[1:])
    _compose_once()
    hydra.main(version_base="1.3", config_path=str(folder()), config_name="config")(run)()


def _refuse_values(words: Sequence[str]) -> None:
    """Refuse a list, a mapping or a number where the name of a choice belongs (UserError): Hydra would fall over it."""
    for word in words:
        group, _, value = word.partition("=")
        names = set(re.findall(r"[^\[\], ]+", value))
        if group in GROUPS and VALUE.fullmatch(value) and not names <= set(choices(group)):
            advice = value_advice(group, value) or f"{group}={' or '.join(choices(group))}"
            raise UserError(f"{word:.60} is not the name of a choice: write {advice}")


def options_first(words: Sequence[str]) -> list[str]:
    """Hydra's options, then the overrides: its own parser takes them in no other order.

    Raises:
        UserError: Hydra has no such option, or it lacks its value.
    """

    def refuse(message: str) -> NoReturn:
        advice = "options: python -m souping --hydra-help"
        if match := re.search(r"arguments: --([\w.]+)[ =]?(\S*)", message):
            advice = f"settings have no dashes: write {match[1]}={match[2] or 'VALUE'}"
        raise UserError(f"{message}; {advice}")

    parser = get_args_parser()
    setattr(parser, "error", refuse)  # noqa: B010  # what mypy takes for a mistake
    overrides = parser.parse_intermixed_args(words).overrides
    return [*(word for word in words if word not in overrides), *overrides]


def _compose_once() -> None:
    """Spare Hydra a composition that only looks for `hydra.mode`, unless something on the command line can set that."""
    if not any("hydra" in word or word.startswith(("-c", "--c")) for word in sys.argv[1:]):
        setattr(Hydra, "get_mode", lambda *_, **__: None)  # noqa: B010  # mypy takes it for a mistake


def run(cfg: DictConfig) -> float | None:
    """One job: returns the objective on the search fold, so that any Hydra sweeper can drive it.

    It is in the evaluator's unit: a sweep over a loss has to minimise it (`souping.cli.sweep.check_goal`). None if the
    job failed: Optuna's sweeper goes on after that, while nan ends it.
    """
    gc.freeze()
    gc.enable()
    interrupts_raise()
    hydra_config = HydraConfig.get()
    group = _group(hydra_config)
    # As it stands: a folder's name may hold ${...}.
    output_dir = unresolved(hydra_config.runtime)["output_dir"]
    run_dir, owned = claim(Path(output_dir), _explicit(hydra_config))
    try:
        objective, unit = _run(cfg, run_dir, group)
        if group:
            note_job(unit, run_dir, hydra_config, cfg.limit, objective)
        return objective
    except Exception as error:
        if cfg.debug:
            discard_refused(run_dir, owned, error)
            raise
        words, code = format_error(error, run_dir)
        discard_refused(run_dir, owned, error)
        if group:
            print(f"job {hydra_config.job.num}: {words}", file=sys.stderr)
            note_job(POINTS, run_dir, hydra_config, cfg.limit, None, words)
            return None
        # Not further up: Hydra would add a line of its own.
        stop(words, code)
    finally:
        if owned:
            (run_dir / CLAIM).unlink(missing_ok=True)
    return None


def _explicit(hydra_config: HydraConf) -> bool:
    return any(
        str(o).startswith(("hydra.run.dir=", "hydra.sweep."))
        for o in unresolved(hydra_config.overrides)["hydra"]
    )


def _run(cfg: DictConfig, run_dir: Path, group: str | None) -> tuple[float | None, Unit]:
    """(the objective on the search fold, its unit)"""
    show_warnings()
    settings = _settings(cfg, run_dir, group)
    write_atomically(
        run_dir / "config.yaml", as_yaml(settings.config).encode("utf-8", "backslashreplace")
    )
    words = " ".join(map(str, unresolved(HydraConfig.get().overrides)["task"]))
    unit = settings.evaluator.unit if isinstance(settings, RunSettings) else POINTS
    with logged(run_dir, command_line(), words or "none"):
        if shows(settings.merge.names):
            from souping.pipeline.merge_only import show_names

            show_names(settings)
            return None, unit
        if cfg.check:
            if not isinstance(settings, RunSettings):
                raise UserError("check evaluates items, and a merge has none: use `plan`")
            from souping.plan.rehearsal import check_run

            check_run(settings)
            return None, unit
        if settings.plan and isinstance(settings, RunSettings):
            from souping.plan.planner import plan

            plan(settings)
            return None, unit
        from souping.pipeline.execute import execute

        return execute(settings).objective, unit


def _settings(cfg: DictConfig, run_dir: Path, group: str | None) -> MergeSettings:
    """The parts and settings of a run, checked and built."""
    overrides = unresolved(HydraConfig.get().overrides)
    paths = [word for word in map(str, overrides["hydra"]) if word.startswith("hydra.searchpath=")]
    words = list(map(str, overrides["task"]))
    drop_replaced(cfg, words, paths)
    plain = resolved(cfg)
    if group and isinstance(plain["tracker"], dict) and plain["tracker"].get("group", "") is None:
        plain["tracker"]["group"] = group
    return settings_of(plain, run_dir)


def _group(hydra_config: HydraConf) -> str | None:
    """The name that a multirun's jobs share."""
    return (
        Path(hydra_config.sweep.dir).name if str(hydra_config.mode).endswith("MULTIRUN") else None
    )
