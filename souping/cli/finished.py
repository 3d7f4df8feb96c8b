"""Commands on finished runs: `analyse` adds analyses to the report, `upload` sends the soup.

Everything else is as in the run's config.yaml unless an override replaces it (store=FILE, pool.candidates=[...]). That
file is data: whoever sent the directory wrote it. So it may name only choices that souping ships, and nothing that runs
other code, unless the command line has --allow-code.
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
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from souping.cli.choice_files import with_installed
from souping.cli.commands import add_overrides, parser_of
from souping.cli.config_keys import is_merge, register, resolved
from souping.cli.listing import named_folder
from souping.cli.process import interrupts_raise
from souping.cli.settings_from_config import run_settings, unresolved
from souping.core.files import expanded, nearby
from souping.core.folders import check_unlinked
from souping.core.system import conf_folder
from souping.core.text import first_line, listed, safe
from souping.core.types import UserError
from souping.report.progress import command_of, show_warnings
from souping.report.run_files import of_another_version, read_run_config
from souping.soups.settings import STORE, target

ANALYSIS_OVERRIDE = re.compile(r"\+{0,2}analysis\b[^=]*=")
"""Overrides that say which analyses, and how."""
RUNS_CODE = re.compile(
    r"(.+\.)?((engine|server)\.args|scorers|command|python|scratch|address|trust_remote_code|confirm_run_unsafe_code|"
    "allow_task_code)"
)
"""Settings by which a shipped choice imports a module, starts a program or joins a cluster that may send it code."""


def begin() -> None:
    """Prepare this process for a run that Hydra does not start: collector, signals, warnings and schema."""
    gc.enable()
    interrupts_raise()
    show_warnings()
    register()


def analyse_run(arguments: Sequence[str], plans: bool) -> None:
    """Add analyses to a finished run; if it only `plans`, print what they would evaluate."""
    from souping.runs.asking import Waiting
    from souping.runs.further_analyses import add_analyses

    parser = parser_of("analyse")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    add_overrides(parser, "analysis=[...], and ")
    parser.add_argument(
        "--config-dir", "-cd", action="append", default=[], metavar="DIR", help="your own choices"
    )
    options = parser.parse_intermixed_args(arguments)
    begin()
    run_dir = named_folder(options.run)
    check_unlinked(run_dir)
    plain = configuration(run_dir, options.overrides, options.config_dir, options.allow_code)
    plain["action"]["plan"] = plans
    try:
        paths = add_analyses(run_settings(plain, run_dir))
    # With executor=files, the answers that an analysis needs come later: what to do, in lines for the user.
    except Waiting as waiting:
        print(safe("\n".join(waiting.args)))
        return
    # The pages show the plots.
    for path in paths:
        if path.suffix != ".png":
            print(f"  {path.name:16} {safe(nearby(path))}")


def send_soup(arguments: Sequence[str], plans: bool) -> None:
    """Send the soup in a folder, or of a run; if it only `plans`, show what would be sent.

    Raises:
        UserError: there is no soup, not all of it, or the Hub refuses.
    """
    from souping.comparison.counted_claims import stores_of
    from souping.merge.soup_files import RECIPE
    from souping.report.render import show_sheet
    from souping.soups.upload import check_target, files_by_recipe, planned_upload, push

    parser = parser_of("upload")
    parser.add_argument("folder", metavar="RUN|SOUP", help="folder of a run, or of a soup")
    parser.add_argument("repo", metavar="REPO", help="org/name on the Hub")
    parser.add_argument("--private", action="store_true", help="if the repository is new")
    parser.add_argument("--store", metavar="FILE", help="results store, where it is not found")
    options = parser.parse_intermixed_args(arguments)
    show_warnings()
    goal = target({"repo": options.repo, "private": options.private})
    soup = named_folder(options.folder)
    store = expanded(options.store or STORE)
    if (soup / "config.yaml").is_file():
        store = next(iter(stores_of(soup, options.store)), store)
        soup /= "soup"
    check_unlinked(soup)
    if not (soup / RECIPE).is_file():
        raise UserError(
            f"{options.folder} has no soup: name a soup's folder, or a run that wrote one"
        )
    if plans:
        show_sheet([planned_upload(goal, files_by_recipe(soup), store)])
        return
    check_target(goal, soup)
    print(f"  {'upload':16} {push(goal, soup, store)}")


ON_RUNS = {"analyse": analyse_run, "upload": send_soup}


def configuration(
    run_dir: Path,
    overrides: Sequence[str],
    choice_folders: Sequence[str] = (),
    allow_code: bool = False,
    unused: Sequence[str] = (),
) -> dict[str, Any]:
    """The run's configuration with the analyses and settings of the command line.

    `choice_folders` have choices of the user's. `unused` are `KEY=` of keys that may name code, because the command
    does not use them.

    Raises:
        UserError: there is no run, or a word is no override.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} has no config.yaml: name the folder of a finished run")
    for word in overrides:
        if "=" not in word or re.match(r"\+{0,2}experiment=", word):
            raise UserError(f"{word} cannot be combined with {run_dir}, whose settings hold")
    before = read_config(path)
    refuse_code(before, path, [*overrides, *unused], allow_code)
    if is_merge(before):
        raise UserError(f"{run_dir} only merged: there is nothing to analyse")
    analyses = [word for word in overrides if ANALYSIS_OVERRIDE.match(word)]
    # A run's file may lack keys that have a default today.
    defaults = _composed(before, analyses, choice_folders)
    plain = {**defaults, **unresolved(before)}
    if analyses or "analysis" not in before:
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
    before: DictConfig, analyses: Sequence[str], choice_folders: Sequence[str]
) -> dict[str, Any]:
    """Today's defaults with the `analyses` of the command line or, without any, of the run; nothing is resolved yet."""
    words = list(analyses)
    # Overrides of a key of an analysis leave the run's list of analyses as it is.
    if not any(re.match(r"\+{0,2}analysis=", word) for word in analyses) and "analysis" in before:
        words.insert(0, f"analysis=[{','.join(map(str, before.analysis))}]")
    if choice_folders:
        places = ",".join(str(Path(folder).resolve()) for folder in choice_folders)
        words.append(f"hydra.searchpath=[{places}]")
    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        return unresolved(compose("config", with_installed(words)))


@cache
def shipped() -> frozenset[str]:
    """Classes and functions that the choices of this package name: all that a run directory may have built."""
    names = set[str]()
    for path in conf_folder().rglob("*.yaml"):
        names |= set(re.findall(r"_target_:\s*([\w.]+)", path.read_text(encoding="utf-8")))
    return frozenset(names)


def read_config(path: Path) -> DictConfig:
    """A run's config.yaml, unresolved (UserError if it cannot be read)."""
    try:
        return OmegaConf.create({**read_run_config(path)})
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: not the configuration of a run: {first_line(error)}") from error


def refuse_code(
    config: DictConfig, path: Path, overrides: Sequence[str], allow_code: bool = False
) -> None:
    """Refuse a run's configuration that names code, except in keys that the user's `overrides` replace.

    Raises:
        UserError: code is not allowed, and the message names file, keys and values; or a class is named as another
            version of souping has it.
    """
    replaced = [word.lstrip("+~").partition("=")[0] for word in overrides]
    code = []
    for key, value in code_in(OmegaConf.to_container(config, resolve=False)):
        if any(f"{key}.".startswith((f"{name}.", f"{name}[")) for name in replaced):
            continue
        if key.endswith("_target_") and str(value).startswith("souping."):
            try:
                get_object(str(value))
            except Exception:
                raise of_another_version(path, command_of(path.parent)) from None
        code.append(f"{key}={value}")
    if code and not allow_code:
        raise UserError(
            f"{path}: {listed(code, 3)}: this would run code that souping does not ship\n"
            "add --allow-code if you trust whoever made this run"
        )


def code_in(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of everything in a configuration that would run code souping does not ship, or read this machine's
    environment. `key` is that of `value`."""
    if isinstance(value, Mapping):
        # Entries of `extra_benchmarks` become components later (`benchmark_node`): all below them counts as settings.
        is_component = "_target_" in value or key.startswith("extra_benchmarks[")
        for name, inner in value.items():
            where = f"{key}.{name}" if key else str(name)
            runs_code = name == "_target_" and str(inner) not in shipped()
            # A setting that is null or empty starts nothing.
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
        # An interpolation, which may read environment variables. A run's own file has none.
        yield key, value
