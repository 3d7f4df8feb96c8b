"""Finished runs: `run=RUN_DIR analysis=[wins,shapley]` adds analyses to their report, `show RUN_DIR` prints answers.

Everything else is as in the run's config.yaml unless an override replaces it (store.path=FILE, pool.candidates=[...]).
That file is data: whoever sent the directory wrote it. So it may name only choices that souping ships, and nothing that
runs other code, unless the command line has allow_code=true.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from souping.cli import COMMANDS, RUN, finished_run, folder, interrupts_raise, misplaced
from souping.cli.config import register, resolved
from souping.cli.job import settings_of, unresolved
from souping.core.fields import pick
from souping.core.files import expanded, nearby
from souping.core.reading import read
from souping.core.text import first_line, listed, positive, read_yaml, safe
from souping.core.types import FOLDS, T, UserError
from souping.core.unit import POINTS, scores_in
from souping.pipeline.settings import RunSettings
from souping.report.content import Report, SelectionFile
from souping.report.files import read_report
from souping.report.progress import show_warnings
from souping.report.render import (
    SAMPLES_FILE,
    Sample,
    changed,
    output_console,
    read_samples,
    show_sample,
)

SHOW_HELP = """Answers of a run's models side by side, from its samples.jsonl.gz.

Without --fixed or --broke every item of the fold counts. The items of the report fold that are
printed are recorded in the ledger of its store."""
ANALYSIS_KEYS = ("analysis", "shapley", "size")
ANALYSIS_OVERRIDE = re.compile(rf"\+{{0,2}}({'|'.join(ANALYSIS_KEYS)})\b[^=]*=")
"""Overrides that say which analyses, and how."""
LONGEST_CONFIG_BYTES = 200_000
"""Bytes of a configuration: more takes YAML longer than anybody waits."""
RUNS_CODE = re.compile(
    "scorers|command|python|extra_args|dir|address|trust_remote_code|confirm_run_unsafe_code|allow_code"
)
"""Settings by which a shipped choice imports a module, starts a program or joins a cluster that may send it code."""
ALLOW = re.compile(r"\+{0,2}allow_code=(true|True|1|yes|on)")


def add(words: Sequence[str]) -> None:
    """Add the analyses that a command line with `run=` asks for, or print what they cost (`plan=true`)."""
    gc.enable()
    interrupts_raise()
    show_warnings()
    register()
    run_dir = expanded(str(finished_run(words)).strip("'\""), "run")
    settings = settings_of(
        configuration(run_dir, [word for word in words if not RUN.fullmatch(word)]), run_dir
    )
    if not isinstance(settings, RunSettings):
        raise UserError(f"run={run_dir} only merged: there is nothing to analyse")
    from souping.pipeline.execute import add_analyses

    for path in add_analyses(settings):
        if path.suffix != ".png":
            print(f"  {path.name:16} {safe(nearby(path))}")


def configuration(run_dir: Path, words: Sequence[str]) -> dict[str, Any]:
    """The run's configuration with the analyses and settings of the command line.

    Raises:
        UserError: there is no run, or a word is no override.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"run={run_dir} has no config.yaml: name the folder of a finished run")
    overrides = list[str]()
    choices = list[str]()
    rest = iter(words)
    for word in rest:
        if word in ("--config-dir", "-cd"):
            choices += [next(rest, "")]
        elif word in COMMANDS:
            raise UserError(misplaced(word))
        elif "=" not in word or re.match(r"-|\+{0,2}(check|experiment|upload)=", word):
            raise UserError(
                f"{word} cannot be combined with run={run_dir}: only analyses are added, as KEY=VALUE"
            )
        else:
            overrides += [word]
    before = read_config(path)
    refuse_code(before, path, overrides)
    own = [word for word in overrides if ANALYSIS_OVERRIDE.match(word)]
    fresh = _composed(before, own, choices)
    whole = {**fresh, **unresolved(before)}
    if own or "analysis" not in before:
        whole |= {key: fresh[key] for key in ANALYSIS_KEYS}
    values = [word.lstrip("+") for word in overrides if word not in own]
    try:
        merged = OmegaConf.merge(whole, OmegaConf.from_dotlist(values))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"cannot read the override {' '.join(values)}: {first_line(error)}"
        ) from error
    assert isinstance(merged, DictConfig)
    return resolved(merged)


def _composed(before: DictConfig, own: Sequence[str], choices: Sequence[str]) -> dict[str, Any]:
    """Today's defaults with the analyses of `own`, or else those of the run; nothing is resolved yet."""
    words = list(own)
    if not any(re.match(r"\+{0,2}analysis=", word) for word in own) and "analysis" in before:
        words.insert(0, f"analysis=[{','.join(map(str, before.analysis))}]")
    words += (
        [f"hydra.searchpath=[{','.join(str(Path(place).resolve()) for place in choices)}]"]
        if choices
        else []
    )
    with initialize_config_dir(config_dir=str(folder()), version_base="1.3"):
        return unresolved(compose("config", words))


@cache
def shipped() -> frozenset[str]:
    """Classes and functions that the choices of this package name: all that a run directory may have built."""
    texts = (path.read_text(encoding="utf-8") for path in folder().rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"_target_:\s*([\w.]+)", text))


def read_config(path: Path) -> DictConfig:
    """A run's config.yaml, unresolved (UserError if it cannot be read)."""
    try:
        text = path.read_bytes()
        if len(text) > LONGEST_CONFIG_BYTES:
            raise ValueError(f"it has more than {LONGEST_CONFIG_BYTES:,} bytes")
        config = OmegaConf.create(read_yaml(text))
        if not isinstance(config, DictConfig):
            raise ValueError("it is no mapping")
    except Exception as error:  # PyYAML's constructors raise whatever int() and others do
        raise UserError(f"{path}: not the configuration of a run: {first_line(error)}") from error
    return config


def refuse_code(config: DictConfig, path: Path, overrides: Sequence[str]) -> None:
    """Refuse a run's configuration that names code. An override answers for the key that it replaces.

    Raises:
        UserError: the message names file, keys and values.
    """
    if any(ALLOW.fullmatch(word) for word in overrides):
        return
    replaced = [word.lstrip("+~").partition("=")[0] for word in overrides]
    plain = OmegaConf.to_container(config, resolve=False)
    named = [
        f"{key}={value}"
        for key, value in code_in(plain)
        if not any(key == own or key.startswith((f"{own}.", f"{own}[")) for own in replaced)
    ]
    if named:
        raise UserError(
            f"{path}: {listed(named, 3)}: this would run code that souping does not ship\n"
            "add allow_code=true if you trust whoever made this run"
        )


def code_in(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of all that would run other code than this package's, or read this machine's environment."""
    if isinstance(value, Mapping):
        inside = "_target_" in value or key.startswith("also[")
        for name, inner in value.items():
            where = f"{key}.{name}" if key else str(name)
            foreign = name == "_target_" and inner not in shipped()
            inline = (
                name == "tasks"
                and isinstance(inner, list)
                and any(isinstance(task, Mapping) for task in inner)
            )
            if foreign or (inside and (inline or (RUNS_CODE.fullmatch(str(name)) and inner))):
                yield where, inner
            else:
                yield from code_in(inner, where)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from code_in(inner, f"{key}[{number}]")
    elif isinstance(value, str) and re.search(r"(?<!\\)(\\\\)*\$\{", value):
        # No run writes an interpolation.
        yield key, value


# ------------------------------------------------------------ show


def show(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    folders = [expanded(folder) for folder in options.run_dir]
    run_dir = next(
        (folder for folder in reversed(folders) if (folder / SAMPLES_FILE).is_file()), folders[-1]
    )
    if len(folders) > 1:
        print(f"{run_dir}: the last of {len(folders)} folders that has answers")
    samples = [read(Sample, row) for row in read_samples(run_dir / SAMPLES_FILE)]
    report = _read_if_there(Report, run_dir / "report.json")
    selection = _read_if_there(SelectionFile, run_dir / "selection.json")
    file = report or selection
    with scores_in(file.unit if file else POINTS):
        fold = options.fold or _reached(samples)
        rows = [sample for sample in samples if sample.fold == fold]
        for key in ("item", "category"):
            if wanted := vars(options)[key]:
                pick(wanted, dict.fromkeys(vars(row)[key] for row in rows), f"--{key}")
                rows = [row for row in rows if vars(row)[key] == wanted]
        names, what = _names(options.models, rows, report), "items"
        if options.fixed or options.broke:
            if len(names) < 2:
                raise UserError("--fixed and --broke compare two models: name them, --models A,B")
            rows = list(changed(rows, names[0], names[-1], better=options.fixed))
            what = f"items that {names[-1]} answers {'better' if options.fixed else 'worse'} than {names[0]}"
        if fold == "report" and report and not report.limit:
            _note(run_dir, options.store, report, rows[: options.limit])
        _show_samples(rows, names, options.limit, what)


def _read_if_there(kind: type[T], path: Path) -> T | None:
    return read(kind, read_report(path)) if path.is_file() else None


def _reached(samples: Sequence[Sample]) -> str:
    """The last fold that the run scored; other runs may have left answers to later ones."""
    scored = set()
    for sample in samples:
        if any(answers.score is not None for answers in sample.models.values()):
            scored.add(sample.fold)
    return next((fold for fold in reversed(FOLDS) if fold in scored), "select")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m souping show",
        description=SHOW_HELP,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "run_dir",
        nargs="+",
        metavar="RUN_DIR",
        help="of several (outputs/mine/*) the last with answers",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--fixed",
        action="store_true",
        help="items that the soup answers better than the best candidate",
    )
    which.add_argument("--broke", action="store_true", help="items that it answers worse")
    parser.add_argument("--category", metavar="C", help="items of this category")
    parser.add_argument("--item", metavar="ID", help="this item")
    parser.add_argument(
        "--models", metavar="A,B", help="these models; the last stands for the soup"
    )
    parser.add_argument(
        "--fold",
        choices=("select", "search", "report"),
        help="default: the last one that was scored",
    )
    parser.add_argument(
        "--limit", type=positive, default=10, metavar="N", help="at most so many items (10)"
    )
    parser.add_argument(
        "--store", metavar="FILE", help="the run's results store, where it is not found"
    )
    return parser


def _names(given: str | None, samples: Sequence[Sample], report: Report | None) -> list[str]:
    """Models that are shown: those that were named, else the best candidate and the soup, else all."""
    known = list(dict.fromkeys(name for sample in samples for name in sample.models))
    if given:
        return [pick(name.strip(), known, "--models") for name in given.split(",")]
    best = report.row("best_single") if report else None
    return [best.name, "soup"] if best and "soup" in known else known


def _note(run_dir: Path, store: str | None, report: Report, samples: Sequence[Sample]) -> None:
    """Write to the ledger that answers to these items of the report fold were looked at."""
    from souping.comparison.looks import store_of
    from souping.pipeline.ledger import Ledger
    from souping.pipeline.store import Store

    shown = [sample.prompt_hash for sample in samples]
    path = store_of(run_dir, store)
    if path is None:
        print(
            "warning: the run's store is not here (--store FILE): this look is noted nowhere",
            file=sys.stderr,
        )
    elif shown:
        with Store(path) as ledger:
            Ledger(ledger).note_view(report.recipe.id if report.recipe else "", shown)


def _show_samples(samples: Sequence[Sample], names: Sequence[str], limit: int, what: str) -> None:
    console = output_console()
    for sample in islice(samples, limit):
        show_sample(console, sample, names)
    shown = min(limit, len(samples))
    more = "" if shown == len(samples) else f", {shown} shown (--limit N)"
    console.print(safe(f"{len(samples):,} {what}{more}"), markup=False)
