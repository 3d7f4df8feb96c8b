"""Command line: compose, check, build, cook. Hydra and OmegaConf live here and in `config`."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from souping.cli import interrupts_raise
from souping.cli.config import PARTS, as_yaml, build, build_also, build_part, check, folder, register, resolved
from souping.core.files import expanded
from souping.core.text import first_line, nearest, safe
from souping.core.types import LateError, UserError
from souping.pipeline.baseline_gate import expectations

if TYPE_CHECKING:
    from souping.pipeline.settings import RunSettings

CLAIM = ".running"
DRAFTS = (CLAIM, "config.yaml", "selection.json")
"""What a run writes before it has results."""
_TOLD: list[tuple[BaseException, int]] = []
"""Errors of a multirun's jobs, which were told when they came, and their exit status."""
_MADE: set[Path] = set()
"""Folders that were not there before this process: those of its runs, and the folders above them."""
_LOST: list[str] = []
"""Standard streams that could not be written to the end."""
EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)
PACKAGE = Path(__file__).resolve().parents[1]
READERS = ("transformers", "tokenizers", "jinja2", "huggingface_hub", "safetensors")
"""Libraries that meet a model's files and templates first: what they raise is about those."""


def main() -> None:
    """Entry of `python -m souping`. Exit 0, 2 (the user's to mend), 1 (ours to mend) or 130 (interrupted)."""
    open_streams()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints its own trace and leaves
    debug = any(re.fullmatch(r"\+{0,2}debug=(true|True|1|yes|on)", a) for a in sys.argv[1:])
    try:
        register()
        hydra.main(version_base="1.3", config_path=str(folder()), config_name="config")(run)()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _stop("interrupted: what was evaluated is in the store; the same command continues", 130)
    except Exception as error:  # a job's own are told by `run`: what comes here arose before it, or was told
        if debug:
            raise
        told = [code for known, code in _TOLD if known is error]
        _stop("", told[0]) if told else _stop(*tell(composition(error)))
    if _LOST:
        sys.exit(2)


def _stop(message: str, code: int) -> None:
    sys.stdout.flush()
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


def composition(error: Exception) -> Exception:
    """An error that arose while the configuration was composed: odd values come out of Hydra in many ways."""
    if isinstance(error, EXPECTED) or not isinstance(error, ValueError | TypeError):
        return error
    odd = [a for a in sys.argv[1:] if re.fullmatch(rf"({'|'.join(PARTS)})=[^a-zA-Z]*", a)]
    return UserError(f"cannot compose the configuration{f' ({odd[0]})' if odd else ''}: {explain(error)}")


def tell(error: Exception, run_dir: Path | None = None) -> tuple[str, int]:
    """(words, exit status) for any error, by where it arose: the one place that decides.

    What is the user's to mend is a line or two. Anything else is a fault of a part of the user's, or of this package:
    then the traceback is kept, in the run's directory where there is one.
    """
    if isinstance(error, EXPECTED):
        return safe(explain(error)), 2
    if isinstance(error, MemoryError):
        return f"out of memory: {first_line(error)}", 2
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, RuntimeError) and frames and Path(frames[-1].filename).name == "pathlib.py":
        *_, own = [
            frame.f_locals["self"] for frame, _ in traceback.walk_tb(error.__traceback__) if "self" in frame.f_locals
        ]
        return safe(f"{own}: cannot be followed: {first_line(error)}"), 2
    place = keep_traceback(error, run_dir)
    what = safe(f"{type(error).__name__}: {first_line(error)}")
    own = [frame for frame in frames if not _is_library(Path(frame.filename))]
    if own and PACKAGE not in Path(own[-1].filename).parents:
        return (
            f"{own[-1].filename}:{own[-1].lineno}: {what}\nthis part is not souping's; the traceback is in {place}",
            2,
        )
    if library := _refuser(error, frames):
        return f"{library} refuses a model's files or what it is asked: {what}\nthe traceback is in {place}", 2
    return f"sorry, this is a fault in souping: {what}\nplease report it with the traceback, which is in {place}", 1


def _refuser(error: Exception, frames: Sequence[traceback.FrameSummary]) -> str:
    """The library that reads models' files and templates and raised this, if one did."""
    if type(error) is Exception:  # what its compiled code raises
        return "tokenizers"
    raised = type(error).__module__.split(".")[0]
    inside = [name for name in READERS if frames and f"/site-packages/{name}/" in frames[-1].filename]
    return raised if raised in READERS else "".join(inside[:1])


def _is_library(file: Path) -> bool:
    """Whether a line of a traceback is an installed package's or Python's own."""
    if PACKAGE in file.parents:
        return False
    installed = [Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not file.is_absolute() or any(place in file.parents for place in installed)


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


class StandardStream(io.FileIO):
    """Standard output or error: where it is full or closed, that is said once and the run goes on without it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if error.errno != errno.EPIPE and self.fileno() == 1:  # a reader that has seen enough needs no word
                _LOST.append("standard output")
                print(f"standard output: {error.strerror}; the run goes on without it", file=sys.stderr)
            return memoryview(data).nbytes


def open_streams() -> None:
    """Make the standard streams safe: a closed one is the null device, so that no file of the run takes its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _safe(1, sys.stdout, sys.__stdout__)
    sys.stderr = _safe(2, sys.stderr, sys.__stderr__)


def _safe(number: int, stream: TextIO | None, first: TextIO | None) -> TextIO:
    if stream is not None and (stream is not first or not isinstance(stream, io.TextIOWrapper)):
        return stream  # somebody else's: a test's, a notebook's
    known = stream if isinstance(stream, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(StandardStream(number, "w", closefd=False)),
        encoding=known.encoding if known else "utf-8",
        errors=known.errors if known else "backslashreplace",
        line_buffering=known.line_buffering if known else True,
        write_through=known.write_through if known else False,
    )


def run(cfg: DictConfig) -> float | None:
    """One job: returns the objective on the search fold, so that any Hydra sweeper can drive it."""
    interrupts_raise()
    hydra_config = HydraConfig.get()
    output_dir = _raw(hydra_config.runtime)["output_dir"]  # as it stands: a folder's name may hold ${...}
    run_dir, owned = claim(Path(output_dir), _explicit(hydra_config))
    try:
        objective = _run(cfg, run_dir, _group(hydra_config))
        if _is_sweep(hydra_config):
            from souping.report.files import write_job

            write_job(run_dir, hydra_config.job.num, _raw(hydra_config.overrides)["task"], objective)
        if owned and not (run_dir / CLAIM).exists():
            print(f"warning: {run_dir} was removed during the run: what it held is lost", file=sys.stderr)
        return objective
    except Exception as error:
        if cfg.debug:
            _discard(run_dir, owned, error)
            raise
        words, code = tell(error, run_dir)
        _discard(run_dir, owned, error)
        if _is_sweep(hydra_config):
            print(f"job {hydra_config.job.num}: {words}", file=sys.stderr)
            _TOLD.append((error, code))
            raise
        _stop(words, code)  # from here, or Hydra adds a line of its own
    finally:
        if owned:
            (run_dir / CLAIM).unlink(missing_ok=True)
    return None


def _raw(node: Any) -> dict[str, Any]:
    """A node of Hydra's own configuration, its texts as they stand."""
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def claim(run_dir: Path, explicit: bool) -> tuple[Path, bool]:
    """(the run's own directory, whether it is this run's to remove).

    Two runs of one second would share a directory: the later gets `_2`. A directory that the user named is taken as it
    is; unless it is empty it is never removed.
    """
    for number in count(1):
        path = run_dir if number == 1 else run_dir.with_name(f"{run_dir.name}_{number}")
        note_missing(path)
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


def note_missing(path: Path) -> None:
    """Remember which folders of a path are not there yet: only those are this process's to remove."""
    _MADE.update(folder for folder in (path.absolute(), *path.absolute().parents) if not folder.exists())


def _explicit(hydra_config: HydraConf) -> bool:
    return any(str(o).startswith(("hydra.run.dir=", "hydra.sweep.")) for o in _raw(hydra_config.overrides)["hydra"])


def _run(cfg: DictConfig, run_dir: Path, group: str | None) -> float | None:
    _hear_warnings()
    settings = _settings(cfg, run_dir, group)
    (run_dir / "config.yaml").write_text(as_yaml(settings.config), encoding="utf-8")
    if settings.plan and not settings.merges_only:
        from souping.planning.planner import plan

        plan(settings)
        return None
    from souping.pipeline.run import cook

    return cook(settings)


def _settings(cfg: DictConfig, run_dir: Path, group: str | None) -> RunSettings:
    """The parts and settings of a run, checked and built."""
    plain = resolved(cfg)
    if group and isinstance(plain["tracker"], dict) and plain["tracker"].get("group", "") is None:
        plain["tracker"]["group"] = group
    return settings_of(plain, run_dir)


def settings_of(plain: Mapping[str, Any], run_dir: Path) -> RunSettings:
    """The parts and settings of a run by its configuration as plain data, checked and built."""
    check(plain)
    parts = build(plain)
    from souping.pipeline.settings import RunSettings
    from souping.pipeline.upload import target

    return RunSettings(
        **parts,
        name=plain["name"],
        seed=plain["seed"],
        stop_after=plain["stop_after"],
        recipe=expanded(plain["recipe"], "recipe") if plain["recipe"] else None,
        plan=plain["plan"],
        throughput=plain["throughput"],
        gate=plain["gate"],
        expected=expectations(plain["expected"]),
        also=build_also(plain),
        upload=target(plain["upload"]),
        out=expanded(plain["out"], "out") if plain["out"] else run_dir / "soup",
        store_path=expanded(plain["store"]["path"], "store.path"),
        run_dir=run_dir,
        config=plain,
    )


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


def _discard(run_dir: Path, owned: bool, error: Exception) -> None:
    """A refused run leaves nothing of its own, and takes nothing else with it.

    Its folder goes while only drafts are in it, and the folders above that this process made. Results, a store, a
    traceback and folders of the user's stay.
    """
    if not owned or isinstance(error, LateError):
        return
    with suppress(OSError):
        inside = list(run_dir.iterdir())
        if any(path.name not in DRAFTS or not path.is_file() for path in inside):
            return
        for path in inside:
            path.unlink()
        for folder in (run_dir.absolute(), *run_dir.absolute().parents):
            if folder not in _MADE and not _MADE.intersection(folder.parents):
                return
            folder.rmdir()


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
    """At a run's start: which folders are not there yet. At a multirun's end: the table of its jobs, in the sweep's
    folder and, with `tracker=wandb`, as one W&B run."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        note_missing(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        note_missing(Path(config.hydra.sweep.dir))

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
        node = OmegaConf.to_container(
            OmegaConf.load(sweep_dir / str(jobs[0]["run_dir"]) / "config.yaml").tracker, resolve=True
        )
        build_part(node).summarise(jobs, sweep_dir)
