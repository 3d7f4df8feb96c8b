"""`python -m souping run=RUN_DIR analysis=[wins,shapley]`: more analyses of a finished run, added to its report.

Everything else is as in the run's config.yaml unless an override replaces it (store.path=FILE, pool.candidates=[...]).
That file is data: it may only name what souping ships unless the command line has allow_code=true.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from souping.cli import interrupts_raise
from souping.cli.config import register, resolved
from souping.cli.help import RUN, finished_run, folder
from souping.cli.job import settings_of
from souping.cli.run_config import read_config, refuse_code
from souping.core.files import expanded, nearby
from souping.core.text import first_line, safe
from souping.core.types import UserError
from souping.pipeline.settings import RunSettings
from souping.report.progress import show_warnings

KEYS = ("analysis", "shapley")
OWN = re.compile(rf"\+{{0,2}}({'|'.join(KEYS)})\b[^=]*=")
"""Overrides that say which analyses, and how."""


def add(words: Sequence[str]) -> None:
    """Add the analyses that a command line with `run=` asks for, or print what they cost (`plan=true`)."""
    gc.enable()
    interrupts_raise()
    show_warnings()
    register()
    run_dir = expanded(str(finished_run(words)).strip("'\""), "run")
    given = [word for word in words if re.match(r"\+{0,2}(check|upload)=", word)]
    if given:
        raise UserError(f"{given[0]} cannot be combined with run={run_dir}: a finished run only gets more analyses")
    settings = settings_of(configuration(run_dir, [word for word in words if not RUN.fullmatch(word)]), run_dir)
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
    places = [number for number, word in enumerate(words) if word in ("--config-dir", "-cd")]
    choices = [words[number + 1] for number in places if number + 1 < len(words)]
    overrides = [word for n, word in enumerate(words) if n not in places and n - 1 not in places]
    if odd := [word for word in overrides if "=" not in word or word.startswith("-")]:
        raise UserError(f"{odd[0]} cannot be combined with run={run_dir}: give KEY=VALUE overrides alone")
    before = read_config(path)
    refuse_code(before, path, overrides)
    own = [word for word in overrides if OWN.match(word)]
    fresh = _composed(before, own, choices)
    whole = {**fresh, **_raw(before)}
    if own or "analysis" not in before:
        whole |= {key: fresh[key] for key in KEYS}
    rest = [word.lstrip("+") for word in overrides if word not in own]
    try:
        merged = OmegaConf.merge(whole, OmegaConf.from_dotlist(rest))
    except (YAMLError, ValueError) as error:
        raise UserError(f"cannot read the override {' '.join(rest)}: {first_line(error)}") from error
    assert isinstance(merged, DictConfig)
    return resolved(merged)


def _composed(before: DictConfig, own: Sequence[str], choices: Sequence[str]) -> dict[str, Any]:
    """Today's defaults with the analyses of `own`, or else those of the run; nothing is resolved yet."""
    words = list(own)
    if not any(re.match(r"\+{0,2}analysis=", word) for word in own) and "analysis" in before:
        words.insert(0, f"analysis=[{','.join(map(str, before.analysis))}]")
    words += [f"hydra.searchpath=[{','.join(str(Path(place).resolve()) for place in choices)}]"] if choices else []
    with initialize_config_dir(config_dir=str(folder()), version_base="1.3"):
        return _raw(compose("config", words))


def _raw(node: DictConfig) -> dict[str, Any]:
    """Top keys with what is below them; nothing is resolved."""
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
