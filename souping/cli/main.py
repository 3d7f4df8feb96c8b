"""Command line: compose, check, build, cook. Hydra and OmegaConf live here and in `config`."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from souping.cli.config import PARTS, build, build_also, build_part, check, folder, register, resolved
from souping.core.text import nearest
from souping.core.types import LateError, UserError
from souping.pipeline.baseline_gate import expectations

CLAIM = ".running"
_TOLD: list[BaseException] = []
"""Errors of a multirun's jobs, which were told when they came."""
EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)


def main() -> None:
    """Entry of `python -m souping` and of the console script. Exit 0, 2 (the user's to mend) or 130 (interrupted)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints its own trace and leaves
    debug = any(re.fullmatch(r"\+{0,2}debug=(true|True|1|yes|on)", a) for a in sys.argv[1:])
    register()
    entry = hydra.main(version_base="1.3", config_path=str(folder()), config_name="config")(run)
    try:
        entry()
    except KeyboardInterrupt:
        _stop("interrupted: what was evaluated is in the store; the same command continues", 130)
    except EXPECTED as error:
        if debug:
            raise
        _stop("" if error in _TOLD else explain(error), 2)
    except (ValueError, TypeError) as error:
        if debug or HydraConfig.initialized():  # a job had begun: that is no fault of the command line
            raise
        odd = [a for a in sys.argv[1:] if re.fullmatch(rf"({'|'.join(PARTS)})=[^a-zA-Z]*", a)]
        _stop(f"cannot compose the configuration{f' ({odd[0]})' if odd else ''}: {explain(error)}", 2)


def _stop(message: str, code: int) -> None:
    sys.stdout.flush()
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


def run(cfg: DictConfig) -> float | None:
    """One job: returns the objective on the search fold, so that any Hydra sweeper can drive it."""
    hydra_config = HydraConfig.get()
    run_dir, owned = claim(Path(hydra_config.runtime.output_dir), _explicit(hydra_config))
    try:
        objective = _run(cfg, run_dir, _group(hydra_config))
        if _is_sweep(hydra_config):
            from souping.report.files import write_job

            write_job(run_dir, hydra_config.job.num, list(hydra_config.overrides.task), objective)
        return objective
    except EXPECTED as error:
        if owned and not isinstance(error, LateError):
            _discard(run_dir)
        if cfg.debug:
            raise
        if _is_sweep(hydra_config):
            print(f"job {hydra_config.job.num}: {explain(error)}", file=sys.stderr)
            _TOLD.append(error)
            raise
        _stop(explain(error), 2)  # from here, or Hydra adds a line of its own
    finally:
        (run_dir / CLAIM).unlink(missing_ok=True)
    return None


def claim(run_dir: Path, explicit: bool) -> tuple[Path, bool]:
    """(the run's own directory, whether it is this run's to remove).

    Two runs of one second would share a directory: the later gets `_2`. A directory that the user named is taken as it
    is; unless it is empty it is never removed.
    """
    for number in count(1):
        path = run_dir if number == 1 else run_dir.with_name(f"{run_dir.name}_{number}")
        path.mkdir(parents=True, exist_ok=True)
        try:
            (path / CLAIM).touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            if len(list(path.iterdir())) == 1:
                return path, True
            (path / CLAIM).unlink()
        if explicit:
            break
    return run_dir, False


def _explicit(hydra_config: HydraConf) -> bool:
    return any(str(o).startswith(("hydra.run.dir=", "hydra.sweep.")) for o in hydra_config.overrides.hydra)


def _run(cfg: DictConfig, run_dir: Path, group: str | None) -> float | None:
    _hear_warnings()
    plain = resolved(cfg)
    if group and plain["tracker"].get("group", "") is None:
        plain["tracker"]["group"] = group
    check(plain)
    parts = build(plain)
    from souping.pipeline.run import cook
    from souping.pipeline.settings import RunSettings
    from souping.pipeline.upload import target

    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    settings = RunSettings(
        **parts,
        name=plain["name"],
        seed=plain["seed"],
        stop_after=plain["stop_after"],
        recipe=Path(plain["recipe"]).expanduser() if plain["recipe"] else None,
        plan=plain["plan"],
        throughput=plain["throughput"],
        gate=plain["gate"],
        expected=expectations(plain["expected"]),
        also=build_also(plain),
        upload=target(plain["upload"]),
        out=Path(plain["out"]).expanduser() if plain["out"] else run_dir / "soup",
        store_path=Path(plain["store"]["path"]).expanduser(),
        run_dir=run_dir,
        config=plain,
    )
    if settings.plan and not settings.merges_only:
        from souping.planning.planner import plan

        plan(settings)
        return None
    return cook(settings)


def _hear_warnings() -> None:
    """Let the warnings of this package through to standard error; Hydra's logging settings switch loggers off."""
    logger = logging.getLogger("souping")
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "souping"]:
        logging.getLogger(name).disabled = False
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logger.handlers = [handler]


def _is_sweep(hydra_config: HydraConf) -> bool:
    return str(hydra_config.mode).endswith("MULTIRUN")


def _group(hydra_config: HydraConf) -> str | None:
    """The name that a multirun's jobs share."""
    return Path(hydra_config.sweep.dir).name if _is_sweep(hydra_config) else None


def _discard(run_dir: Path) -> None:
    """A refused run leaves nothing: its own folder goes, and the parents that it alone made."""
    shutil.rmtree(run_dir, ignore_errors=True)
    for parent in list(run_dir.parents)[:2]:
        try:
            parent.rmdir()
        except OSError:
            return


def explain(error: BaseException) -> str:
    """An error as one or two lines: what, where, what to do."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{error.filename or 'file system'}: {error.strerror or error}"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override}\n"
            "values that hold ( ) , = or spaces need quotes inside the shell's own: 'key=\"a (b)\"'"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    options = getattr(error, "options", None)  # Hydra's
    if options:  # an unknown choice of a group
        asked = str(getattr(error, "missing_cfg_file", "") or "").rsplit("/", 1)[-1]  # Hydra's
        return f"{lines[0]}{nearest(asked, options)}\nchoices: {', '.join(options)}"
    dull = ("full_key:", "object_type=", "reference_type=", "To append to your config", "See https", "Environment")
    kept = [line for line in lines if not line.startswith(dull)][:2] or [type(error).__name__]
    kept[0] = kept[0].rstrip(".") + _nearest_key(error)
    return "\n".join(kept) + _reason(error, kept)


def _nearest_key(error: BaseException) -> str:
    """The nearest name to the key that OmegaConf did not know."""
    cause: BaseException | None = error
    while cause is not None:
        node = getattr(cause, "parent_node", None)  # OmegaConf's
        match = re.search(r"Key '([^']+)' (?:is )?not in", str(cause))
        if node is not None and match and OmegaConf.is_dict(node):
            keys = [str(k) for k in node if not str(k).startswith("_")]
            return nearest(match.group(1), keys) or f"; known keys: {', '.join(keys) or 'none'}"
        cause = cause.__cause__
    return ""


def _reason(error: BaseException, kept: list[str]) -> str:
    """Hydra names the override, its cause the fault (a wrong type)."""
    cause = error.__cause__
    first = str(cause).strip().splitlines()[0] if cause is not None and str(cause).strip() else ""
    return f"\n{first}" if first and len(kept) == 1 and "Key '" not in first else ""


class SweepEnd(Callback):
    """At a multirun's end: the table of its jobs, in the sweep's folder and, with `tracker=wandb`, as one W&B run."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from souping.report.files import read_jobs, sweep_lines, write_sweep

        sweep_dir = Path(config.hydra.sweep.dir)
        jobs = read_jobs(sweep_dir)
        if not jobs:
            return
        self._track(sweep_dir, jobs)
        print(f"  {'sweep':15} {write_sweep(sweep_dir, jobs)}")
        print("\n".join(sweep_lines(jobs)))

    def _track(self, sweep_dir: Path, jobs: Sequence[Mapping[str, Any]]) -> None:
        """One summary in the group of the jobs, by a tracker as theirs was."""
        node = OmegaConf.to_container(OmegaConf.load(sweep_dir / str(jobs[0]["run_dir"]) / "config.yaml").tracker)
        build_part(node).summarise(jobs, sweep_dir)
