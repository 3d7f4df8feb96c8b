"""Job of a run: Hydra composes it; this file claims its directory, builds its components, runs it, and words errors."""

from __future__ import annotations

import gc
import math
import re
import shlex
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import distributions
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from souping.analysis.guards import read_guards
from souping.checkpoints.layouts import shows
from souping.cli import (
    COMMANDS,
    EXIT_STATUSES,
    choices,
    folder,
    groups,
    interrupts_raise,
    misplaced,
    stop,
)
from souping.cli.config import (
    PACKAGE,
    USER_CODE,
    build,
    build_part,
    drop_replaced,
    key_of,
    merges_only,
    named_in,
    near_key,
    register,
    resolved,
)
from souping.core.files import discard, error_text, expanded, missing_folders, write_atomically
from souping.core.text import first_line, nearest, safe, stripped_lines
from souping.core.types import LateError, UserError, texts
from souping.core.unit import POINTS, Unit, scores_in
from souping.pipeline.settings import GROUP_KINDS, expectations
from souping.report.progress import EARLY, command_line, logged, show_warnings
from souping.trackers import GuardedTracker

if TYPE_CHECKING:
    from souping.pipeline.settings import MergeSettings

EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)
READERS = (
    "transformers",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "safetensors",
    "lm_eval",
    "datasets",
    "sacrebleu",
)
"""Libraries that read models' files and templates: their exceptions mean a bad file, not a bug here."""
JOB_NUMBER = re.compile(r"\$\\?\{hydra\\?:job\.num\\?\}")
"""As Hydra's sweeper quotes it."""
PLUGIN = re.compile(r'File "(.*/hydra_plugins)/(\w+)')
"""Line of a traceback that is in a plugin of Hydra's."""
CLAIM = ".running"
_MADE: set[Path] = set()
"""Folders that were not there before this process: those of its runs, and the folders above them."""
_SWEEPS: list[Path] = []
"""The multirun's folder, until its table is written."""


def start() -> None:
    """Compose and run the command line, once or, with `-m`, for each combination."""
    register()
    sys.argv[1:] = options_first(sys.argv[1:])
    _compose_once()
    hydra.main(version_base="1.3", config_path=str(folder()), config_name="config")(run)()


def options_first(words: Sequence[str]) -> list[str]:
    """Hydra's options, then the overrides: its own parser takes them in no other order.

    Raises:
        UserError: Hydra has no such option, or it lacks its value.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; options: python -m souping --hydra-help")

    parser = get_args_parser()
    setattr(parser, "error", refuse)  # noqa: B010  # what mypy takes for a mistake
    overrides = parser.parse_intermixed_args(words).overrides
    return [*(word for word in words if word not in overrides), *overrides]


def _compose_once() -> None:
    """Spare Hydra a composition that only looks for `hydra.mode`, unless something on the command line can set that."""
    if not any("hydra" in word or word.startswith(("-c", "--c")) for word in sys.argv[1:]):
        setattr(Hydra, "get_mode", lambda *_, **__: None)  # noqa: B010  # mypy takes it for a mistake


def run(cfg: DictConfig) -> float | None:
    """One job: returns the objective on the search fold, so that any Hydra sweeper can drive it; nan if it failed.

    It is in the evaluator's unit: a sweep over a loss has to minimise it.
    """
    gc.freeze()
    gc.enable()
    interrupts_raise()
    hydra_config = HydraConfig.get()
    group = _group(hydra_config)
    # as it stands: a folder's name may hold ${...}
    output_dir = unresolved(hydra_config.runtime)["output_dir"]
    run_dir, owned = claim(Path(output_dir), _explicit(hydra_config))
    try:
        objective, own = _run(cfg, run_dir, group)
        if group:
            with scores_in(own):
                _note_job(run_dir, hydra_config, cfg.limit, objective)
        return objective
    except Exception as error:
        if cfg.debug:
            _discard(run_dir, owned, error)
            raise
        words, code = format_error(error, run_dir)
        _discard(run_dir, owned, error)
        if group:
            print(f"job {hydra_config.job.num}: {words}", file=sys.stderr)
            _note_job(run_dir, hydra_config, cfg.limit, None, words)
            return math.nan
        stop(words, code)  # from here, or Hydra adds a line of its own
    finally:
        if owned:
            (run_dir / CLAIM).unlink(missing_ok=True)
    return None


def unresolved(node: Any) -> dict[str, Any]:
    """A node of a configuration as plain data, its texts as they stand."""
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _note_job(
    run_dir: Path,
    hydra_config: HydraConf,
    limit: int | None,
    objective: float | None,
    refused: str = "",
) -> None:
    """A job's line of the sweep's table, as a file: jobs may run in other processes."""
    from souping.report.files import write_job

    job = {
        "job": hydra_config.job.num,
        "overrides": unresolved(hydra_config.overrides)["task"],
        "objective": objective,
        "refused": refused,
        "limit": limit,
    }
    with suppress(UserError) if refused else nullcontext():
        write_job(run_dir, job)


def claim(run_dir: Path, explicit: bool) -> tuple[Path, bool]:
    """(the run's own directory, whether it is this run's to remove).

    Two runs of one second would share a directory: the later gets `_2`. A directory that the user named is taken as it
    is, unless it holds a run already, and unless it is empty it is never removed.
    """
    for path in _numbered(run_dir):
        note_missing(path)
        path.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (path / CLAIM).touch(exist_ok=False)
            inside = {file.name for file in path.iterdir()}
            if inside == {CLAIM}:
                if explicit and path != run_dir:
                    print(
                        f"note: {run_dir} holds a run already: this one is in {path}",
                        file=sys.stderr,
                    )
                return path, True
            (path / CLAIM).unlink()
            if explicit and "config.yaml" not in inside:
                break
    return path, False


def note_missing(path: Path) -> None:
    """Remember which folders of a path are not there yet: only those are this process's to remove."""
    _MADE.update(missing_folders(path))


def _explicit(hydra_config: HydraConf) -> bool:
    return any(
        str(o).startswith(("hydra.run.dir=", "hydra.sweep."))
        for o in unresolved(hydra_config.overrides)["hydra"]
    )


def _run(cfg: DictConfig, run_dir: Path, group: str | None) -> tuple[float | None, Unit]:
    """(the objective on the search fold, its unit)"""
    from souping.pipeline.settings import RunSettings

    show_warnings()
    settings = _settings(cfg, run_dir, group)
    write_atomically(
        run_dir / "config.yaml", as_yaml(settings.config).encode("utf-8", "backslashreplace")
    )
    words = " ".join(map(str, unresolved(HydraConfig.get().overrides)["task"]))
    own = settings.evaluator.unit if isinstance(settings, RunSettings) else POINTS
    with logged(run_dir, command_line(), words or "none"), scores_in(own):
        if shows(settings.merge.names):
            from souping.pipeline.merge_only import show_names

            show_names(settings)
            return None, own
        if cfg.check:
            if not isinstance(settings, RunSettings):
                raise UserError("check evaluates items, and a merge has none: use `plan`")
            from souping.plan.planner import check_run

            check_run(settings)
            return None, own
        if settings.plan and isinstance(settings, RunSettings):
            from souping.plan.planner import plan

            plan(settings)
            return None, own
        from souping.pipeline.execute import execute

        return execute(settings), own


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


def settings_of(plain: Mapping[str, Any], run_dir: Path) -> MergeSettings:
    """The components and settings of a run by its configuration as plain data, checked and built."""
    parts = build(plain)
    merges = merges_only(plain)
    for key in ("stop_after", "limit", "guard", "pareto", "pick"):
        if merges and plain[key] is not None:
            raise UserError(
                f"{key}={plain[key]!s:.60}: nothing is evaluated without items: leave it out"
            )
    from souping.pipeline.settings import MergeSettings, RunSettings
    from souping.pipeline.upload import target

    common = {
        **parts,
        **{key: plain[key] for key in ("name", "seed", "plan")},
        "recipe": expanded(plain["recipe"], "recipe") if plain["recipe"] else None,
        "upload": target(plain["upload"]),
        "out": expanded(plain["out"], "out") if plain["out"] else run_dir / "soup",
        "store_path": expanded(plain["store"]["path"], "store.path"),
        "run_dir": run_dir,
        "config": plain,
        "command": command_line(),
    }
    if merges:
        return MergeSettings(**common)
    return RunSettings(
        **common,
        **{
            key: plain[key]
            for key in (
                "stop_after",
                "limit",
                "throughput",
                "margin",
                "gate",
                "guard_against",
                "pick",
            )
        },
        expected=expectations(plain["expected"], parts["evaluator"].unit.scale),
        guard=read_guards(plain["guard"]),
        pareto=tuple(plain["pareto"] or ()),
    )


def as_yaml(config: Mapping[str, Any]) -> str:
    """A resolved configuration as a file that Hydra reads again: what looks like an interpolation is escaped."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(config)))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    return [_escaped(inner) for inner in value] if isinstance(value, list | tuple) else value


def _group(hydra_config: HydraConf) -> str | None:
    """The name that a multirun's jobs share."""
    return (
        Path(hydra_config.sweep.dir).name if str(hydra_config.mode).endswith("MULTIRUN") else None
    )


def _discard(run_dir: Path, owned: bool, error: Exception) -> None:
    """A refused run leaves nothing of its own, and takes nothing else with it.

    Its folder goes while only early files are in it, and the folders above that this process made. Results, a store, a
    traceback and folders of the user's stay.
    """
    if owned and not isinstance(error, LateError):
        discard(run_dir, _MADE, (CLAIM, *EARLY))


class SweepEnd(Callback):
    """At a run's start: which folders are not there yet. At a multirun's end: the table of its jobs, in the sweep's
    folder and, with `tracker=wandb`, as one W&B run."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        note_missing(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        place = Path(config.hydra.sweep.dir)
        fresh = next(path for path in _numbered(place) if not any(path.glob("*/config.yaml")))
        if fresh != place:
            print(
                f"note: {place} holds a multirun already: this one is in {fresh}", file=sys.stderr
            )
            with read_write(config), read_write(config.hydra):
                config.hydra.sweep.dir = str(fresh)
                quoted = str(fresh).replace("'", "\\'")
                # what jobs are composed by
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        note_missing(fresh)
        _SWEEPS.append(fresh)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        end_sweep()


def _numbered(path: Path) -> Iterator[Path]:
    """A path, then `path_2`, `path_3`, ..."""
    yield path
    yield from (path.with_name(f"{path.name}_{number}") for number in count(2))


def end_sweep() -> None:
    """The table of a multirun's jobs as far as they came, once, also where Hydra gave up."""
    while _SWEEPS:
        sweep_dir = _SWEEPS.pop()
        try:
            _sweep_table(sweep_dir)
        except (*EXPECTED, ValueError) as error:
            EXIT_STATUSES.append(2)
            print(f"the multirun has no table: {explain(error)}", file=sys.stderr)


def _sweep_table(sweep_dir: Path) -> None:
    from souping.report.files import JOB, best_jobs, read_jobs, sweep_lines, write_sweep

    jobs = read_jobs(sweep_dir)
    if not jobs:
        return
    _track(sweep_dir, jobs)
    print(f"  {'sweep':16} {write_sweep(sweep_dir, jobs)}")
    print("\n".join(sweep_lines(jobs)))
    for job in best_jobs(jobs)[:1]:
        print(f"test job {job['job']} on the report fold:\n{safe(final_command(job, sweep_dir))}")
    if refused := [str(job["job"]) for job in jobs if job["refused"]]:
        EXIT_STATUSES.append(2)
        print(
            f"{len(refused)} of {len(jobs)} jobs failed (job {', '.join(refused)}): see sweep.csv",
            file=sys.stderr,
        )
    for job in jobs:
        place = sweep_dir / str(job["run_dir"])
        # the table has it now
        if job["refused"] and [path.name for path in place.iterdir()] == [JOB]:
            (place / JOB).unlink()
            place.rmdir()


def final_command(job: Mapping[str, Any], sweep_dir: Path) -> str:
    """The command that runs a job of a multirun to its end, by itself."""
    overrides = texts(job, "overrides")
    words = [word for word in overrides if named_in([word]) != {"stop_after"}]
    config = OmegaConf.load(sweep_dir / str(job["run_dir"]) / "config.yaml")
    # set by a file that an override chose
    if len(words) == len(overrides) and OmegaConf.select(config, "stop_after"):
        words.append("stop_after=null")
    typed = get_args_parser().parse_args()
    if typed.config_dir:
        words.append(f"--config-dir={typed.config_dir}")
    words += [word for word in typed.overrides if word.startswith("hydra.searchpath=")]
    if not typed.multirun:
        words.append("hydra.mode=RUN")
    # A single run has no number.
    command = JOB_NUMBER.sub(str(job["job"]), "\0".join(words)).split("\0")
    return shlex.join(["python", "-m", "souping", *command])


def _track(sweep_dir: Path, jobs: Sequence[Mapping[str, Any]]) -> None:
    """One summary in the group of the jobs, by their tracker."""
    ran = [sweep_dir / str(job["run_dir"]) / "config.yaml" for job in jobs if not job["refused"]]
    if ran:
        config = OmegaConf.to_container(OmegaConf.load(ran[0]), resolve=True)
        assert isinstance(config, dict)
        tracker = build_part(config["tracker"], GROUP_KINDS["tracker"], "tracker")
        GuardedTracker(tracker).summarise(jobs, sweep_dir)


# ------------------------------------------------------------ errors


def format_error(error: Exception, run_dir: Path | None = None) -> tuple[str, int]:
    """(message, exit status) of any error: the one place that decides.

    What the user can fix takes a line or two. Anything else is a fault of a component of the user's or of this package:
    then the traceback is kept, in the run's directory if there is one.
    """
    if plugin := _broken_plugin(error):
        return plugin, 2
    if isinstance(error, EXPECTED):
        return safe(explain(error)), 2
    if isinstance(error, MemoryError):
        return f"out of memory: {first_line(error)}", 2
    frames = traceback.extract_tb(error.__traceback__)
    place = keep_traceback(error, run_dir)
    what = safe(f"{type(error).__name__}: {first_line(error)}")
    culprits = [
        f"{USER_CODE[frame.filename]}, line {frame.lineno}"
        for frame in frames
        if frame.filename in USER_CODE
    ]
    own = [frame for frame in frames if not _is_library(Path(frame.filename))]
    if not culprits and own and PACKAGE not in Path(own[-1].filename).parents:
        culprits = [f"{own[-1].filename}:{own[-1].lineno}"]
    if culprits:
        return (
            f"{culprits[-1]}: {what}\nthis component is not part of souping; the traceback is in {place}",
            2,
        )
    # from Rust
    raised_by = (
        type(error).__module__.split(".")[0] if type(error) is not Exception else "tokenizers"
    )
    inside = [
        name
        for name in (*READERS, "hydra", "nevergrad", "omegaconf")
        if frames and f"/{name}/" in frames[-1].filename
    ]
    if library := [name for name in (raised_by, *inside) if name in (*READERS, *inside)]:
        return (
            f"{library[0]} cannot use a file or this request: {what}\nthe traceback is in {place}",
            2,
        )
    if USER_CODE:
        return f"{what}\na fault in souping or in {', '.join(USER_CODE.values())}: see {place}", 1
    return (
        f"sorry, this is a fault in souping: {what}\nplease report it with the traceback in {place}",
        1,
    )


def _broken_plugin(error: Exception) -> str:
    """What to do about a plugin of Hydra's that cannot be imported; empty if the error is another."""
    trace = "".join(traceback.format_exception(error))
    places = PLUGIN.findall(trace)
    if "_scan_all_plugins" not in trace or not places:
        return ""
    folder, name = places[-1]
    remedy = f"remove it from {folder}"
    for package in distributions():
        if any(file.parts[:2] == ("hydra_plugins", name) for file in package.files or ()):
            remedy = f"pip uninstall {package.name}"
    return safe(
        f"hydra_plugins.{name}: {type(error).__name__}: {first_line(error)}\n"
        f"Hydra imports every plugin that is installed, and this one fails: {remedy}"
    )


def _is_library(file: Path) -> bool:
    """Whether a line of a traceback is an installed package's or Python's own."""
    if PACKAGE in file.parents:
        return False
    installed = {"site-packages", "dist-packages"}.intersection(file.parts)
    return (
        not file.is_absolute()
        or bool(installed)
        or Path(sysconfig.get_path("stdlib")) in file.parents
    )


def keep_traceback(error: Exception, run_dir: Path | None) -> Path:
    """The file that holds the whole traceback from now on."""
    text = "".join(traceback.format_exception(error))
    if run_dir is not None:
        with suppress(OSError):
            (run_dir / "traceback.txt").write_text(text, "utf-8", "backslashreplace")
            return run_dir / "traceback.txt"
    handle, name = tempfile.mkstemp(prefix="souping-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return Path(name)


def explain(error: BaseException) -> str:
    """An error as one or two lines: what, where, what to do."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        key = key_of(str(error.filename)) if error.filename else ""
        return f"{key}={error_text(error)}" if key else error_text(error)
    if isinstance(error, OverrideParseException):
        if error.override in (*COMMANDS, "help"):
            return misplaced(error.override)
        return (
            f"cannot read the override {error.override}\n"
            "values that hold ( ) , = ~ or spaces need quotes inside the shell's own: 'key=\"a (b)\"'"
        )
    lines = stripped_lines(error)
    group, _, asked = str(getattr(error, "missing_cfg_file", "") or "").rpartition("/")  # Hydra's
    # Hydra's
    options = getattr(error, "options", None) or (choices(group) if group in groups() else None)
    if options:  # an unknown choice of a group
        typed = f"{'+' * (group == 'experiment')}{group}={asked}: there is no such choice"
        where = typed if group and lines[0].startswith("In 'config'") else lines[0]
        return f"{where}{nearest(asked, options)}\nchoices: {', '.join(options)}"
    dull = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "To append to your config",
        "See https",
        "Environment",
    )
    kept = [line for line in lines if not line.startswith(dull)][:2] or [type(error).__name__]
    kept[0] = kept[0].rstrip(".") + _nearest_key(error)
    # Hydra names the override, its cause the fault
    if len(kept) == 1 and error.__cause__ is not None:
        kept += [line for line in [first_line(error.__cause__)] if "Key '" not in line]
    return "\n".join(kept)


def _nearest_key(error: BaseException) -> str:
    """The nearest name to the key that OmegaConf did not know."""
    cause: BaseException | None = error
    while cause is not None:
        node = getattr(cause, "parent_node", None)  # OmegaConf's
        match = re.search(r"Key '([^']+)' (?:is )?not in", str(cause))
        if node is not None and match and OmegaConf.is_dict(node):
            keys = [str(k) for k in node if not str(k).startswith("_")]
            return (
                near_key(match.group(1), node, keys) or f"; known keys: {', '.join(keys) or 'none'}"
            )
        cause = cause.__cause__
    return ""
