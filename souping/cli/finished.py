"""Finished runs: `run=RUN_DIR analysis=[item_wins,shapley]` adds analyses to the report, `upload=REPO` sends the soup.

Everything else is as in the run's config.yaml unless an override replaces it (store=FILE, pool.candidates=[...]).
That file is data: whoever sent the directory wrote it. So it may name only choices that souping ships, and nothing that
runs other code, unless the command line has allow_code=true.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from souping.cli.commands import COMMANDS, RUN, finished_run, misplaced
from souping.cli.config import is_merge, register, resolved
from souping.cli.help import folder
from souping.cli.process import interrupts_raise
from souping.cli.settings import merge_settings, run_settings, unresolved
from souping.core.files import expanded, nearby
from souping.core.folders import check_unlinked
from souping.core.text import first_line, listed, safe
from souping.core.types import UserError
from souping.pipeline.settings import SoupSettings
from souping.report.files import read_run_config
from souping.report.progress import show_warnings

ANALYSIS_OVERRIDE = re.compile(r"\+{0,2}analysis\b[^=]*=")
"""Overrides that say which analyses, and how."""
UPLOAD = re.compile(r"\+{0,2}upload=")
RUNS_CODE = re.compile(
    r"(.+\.)?((engine|server)\.args|scorers|command|python|scratch|address|trust_remote_code|confirm_run_unsafe_code|"
    "allow_task_code)"
)
"""Settings by which a shipped choice imports a module, starts a program or joins a cluster that may send it code."""
ALLOW = re.compile(r"\+{0,2}allow_code=(true|True|1|yes|on)")


def begin() -> None:
    """Prepare this process for a run that Hydra does not start."""
    gc.enable()
    interrupts_raise()
    show_warnings()
    register()


def add(words: Sequence[str]) -> None:
    """Add the analyses that a command line with `run=` asks for, or send the soup; with `plan=true` print what that
    costs or sends."""
    begin()
    run_dir = expanded(str(finished_run(words)).strip("'\""), "run")
    check_unlinked(run_dir)
    overrides = [word for word in words if not RUN.fullmatch(word)]
    plain = configuration(run_dir, overrides)
    # A run that sent its soup does not send it again with each analysis.
    sends = plain["upload"] is not None and any(map(UPLOAD.match, overrides))
    if sends and any(map(ANALYSIS_OVERRIDE.match, overrides)):
        raise UserError("upload= and analysis= take two commands: add the analyses first")
    if is_merge(plain):
        merged = merge_settings(plain, run_dir)
        _send(merged, merged.out if merged.out.exists() else None)
        return
    settings = run_settings(plain, run_dir)
    if sends:
        from souping.pipeline.execute import written_soup
        from souping.pipeline.finished import read_finished

        report, _ = read_finished(run_dir)
        _send(settings, written_soup(settings, report))
        return
    from souping.pipeline.executors.asking import Waiting
    from souping.pipeline.finished import add_analyses

    try:
        paths = add_analyses(settings)
    except Waiting as waiting:
        print(safe("\n".join(waiting.args)))
        return
    for path in paths:
        if path.suffix != ".png":
            print(f"  {path.name:16} {safe(nearby(path))}")


def _send(settings: SoupSettings, soup: Path | None) -> None:
    """Send the soup of a finished run or merge, or with `plan` show what would be sent.

    Raises:
        UserError: there is no soup, not all of it, or the Hub refuses.
    """
    from souping.pipeline.upload import check, planned_upload, send, soup_files
    from souping.report.render import show_sheet

    goal = settings.upload
    assert goal is not None
    if soup is None:
        raise UserError(
            f"run={settings.run_dir} has no soup: upload={goal.repo} has nothing to send"
        )
    if settings.plan:
        show_sheet([planned_upload(goal, soup_files(soup), settings.store_path)])
        return
    check(goal, soup)
    send(settings, goal, soup)


def configuration(
    run_dir: Path, words: Sequence[str], unused: Sequence[str] = ()
) -> dict[str, Any]:
    """The run's configuration with the analyses and settings of the command line. `unused` keys run no code.

    Raises:
        UserError: there is no run, or a word is no override.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"run={run_dir} has no config.yaml: name the folder of a finished run")
    overrides = list[str]()
    choices = list[str]()
    following = iter(words)
    for word in following:
        if word in ("--config-dir", "-cd"):
            choices += [next(following, "")]
        elif word in COMMANDS:
            raise UserError(misplaced(word))
        elif "=" not in word or re.match(r"-|\+{0,2}(check|experiment)=", word):
            raise UserError(
                f"{word} cannot be combined with run={run_dir}: give analysis=[...] or upload=REPO"
            )
        else:
            overrides += [word]
    before = read_config(path)
    refuse_code(before, path, [*overrides, *unused])
    analyses = [word for word in overrides if ANALYSIS_OVERRIDE.match(word)]
    merges = is_merge(before)
    if merges and (analyses or not any(map(UPLOAD.match, overrides))):
        raise UserError(f"run={run_dir} only merged: there is nothing to analyse")
    defaults = _composed("merge" if merges else "config", before, analyses, choices)
    plain = {**defaults, **unresolved(before)}
    if not merges and (analyses or "analysis" not in before):
        plain["analysis"] = defaults["analysis"]
    values = [word.lstrip("+") for word in overrides if word not in analyses]
    try:
        merged = OmegaConf.merge(plain, OmegaConf.from_dotlist(values))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"cannot read the override {' '.join(values)}: {first_line(error)}"
        ) from error
    assert isinstance(merged, DictConfig)
    return resolved(merged)


def _composed(
    root: str, before: DictConfig, analyses: Sequence[str], choices: Sequence[str]
) -> dict[str, Any]:
    """Today's defaults with the `analyses` of the command line, or else those of the run; nothing is resolved yet."""
    words = list(analyses)
    if not any(re.match(r"\+{0,2}analysis=", word) for word in analyses) and "analysis" in before:
        words.insert(0, f"analysis=[{','.join(map(str, before.analysis))}]")
    if choices:
        places = ",".join(str(Path(place).resolve()) for place in choices)
        words.append(f"hydra.searchpath=[{places}]")
    with initialize_config_dir(config_dir=str(folder()), version_base="1.3"):
        return unresolved(compose(root, words))


@cache
def shipped() -> frozenset[str]:
    """Classes and functions that the choices of this package name: all that a run directory may have built."""
    names = set[str]()
    for path in folder().rglob("*.yaml"):
        names |= set(re.findall(r"_target_:\s*([\w.]+)", path.read_text(encoding="utf-8")))
    return frozenset(names)


def read_config(path: Path) -> DictConfig:
    """A run's config.yaml, unresolved (UserError if it cannot be read)."""
    try:
        return OmegaConf.create({**read_run_config(path)})
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: not the configuration of a run: {first_line(error)}") from error


def refuse_code(config: DictConfig, path: Path, overrides: Sequence[str]) -> None:
    """Refuse a run's configuration that names code. An override answers for the key that it replaces.

    Raises:
        UserError: the message names file, keys and values.
    """
    if any(ALLOW.fullmatch(word) for word in overrides):
        return
    replaced = [word.lstrip("+~").partition("=")[0] for word in overrides]
    code = []
    for key, value in code_in(OmegaConf.to_container(config, resolve=False)):
        if not any(f"{key}.".startswith((f"{name}.", f"{name}[")) for name in replaced):
            code.append(f"{key}={value}")
    if code:
        raise UserError(
            f"{path}: {listed(code, 3)}: this would run code that souping does not ship\n"
            "add allow_code=true if you trust whoever made this run"
        )


def code_in(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of all that would run other code than this package's, or read this machine's environment."""
    if isinstance(value, Mapping):
        is_component = "_target_" in value or key.startswith("extra_benchmarks[")
        for name, inner in value.items():
            where = f"{key}.{name}" if key else str(name)
            runs_code = name == "_target_" and str(inner) not in shipped()
            if is_component and RUNS_CODE.fullmatch(where) and inner:
                runs_code = True
            if is_component and name == "tasks" and isinstance(inner, list):
                # Tasks that are written out may name functions.
                runs_code |= any(isinstance(task, Mapping) for task in inner)
            if runs_code:
                yield where, inner
            else:
                yield from code_in(inner, where)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from code_in(inner, f"{key}[{number}]")
    elif isinstance(value, str) and re.search(r"(?<!\\)(\\\\)*\$\{", value):
        # No run writes an interpolation.
        yield key, value
