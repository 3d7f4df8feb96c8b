"""`python -m souping analyse RUN_DIR [OVERRIDE...]`: analyses of a finished run, added to its report.

RUN_DIR is the directory of a run that ended with a report. Its config.yaml may name only what souping ships; add
allow_code=true if it names code of your own. The overrides say which analyses (analysis=[wins,shapley])
and set what they take (shapley.value=winner); without `analysis=` it is the run's own. Others (store.path=FILE,
pool.candidates=[...]) replace the run's settings. plan=true tells the price and stops. Start it where the run was
started.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from souping.cli.config import register, resolved
from souping.cli.help import folder
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


def main(arguments: Sequence[str]) -> int:
    """Exit status 0; what is refused is told where commands are dispatched."""
    options = _parser().parse_intermixed_args(arguments)
    show_warnings()
    run_dir = expanded(options.run_dir)
    settings = settings_of(configuration(run_dir, options.overrides, options.config_dir), run_dir)
    from souping.pipeline.finished import analyse_again

    if not isinstance(settings, RunSettings):
        raise UserError(f"{run_dir}: this run only merged, there is nothing to analyse")
    for path in analyse_again(settings):
        if path.suffix != ".png":
            print(f"  {path.name:16} {safe(nearby(path))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m souping analyse", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of choices of your own")
    return parser


def configuration(run_dir: Path, overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """The run's configuration with the analyses that are asked for.

    Raises:
        UserError: there is no run, or an override cannot be read.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir}: no config.yaml: name the directory of a finished run")
    odd = [word for word in overrides if "=" not in word]
    if odd:
        raise UserError(f"{odd[0]} is no override: write KEY=VALUE")
    before = read_config(path)
    refuse_code(before, path, overrides)
    own = [word for word in overrides if OWN.match(word)]
    fresh = _composed(before, own, config_dir)
    whole = {**fresh, **_raw(before)}
    if own or "analysis" not in before:
        whole |= {key: fresh[key] for key in KEYS}
    rest = [word for word in overrides if word not in own]
    try:
        merged = OmegaConf.merge(whole, OmegaConf.from_dotlist(rest))
    except (YAMLError, ValueError) as error:
        raise UserError(f"cannot read the override {' '.join(rest)}: {first_line(error)}") from error
    assert isinstance(merged, DictConfig)
    return resolved(merged)


def _composed(before: DictConfig, own: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """The defaults of today with the analyses that `own` asks for, else those of the run; nothing is resolved yet."""
    register()
    words = list(own)
    if not any(re.match(r"\+{0,2}analysis=", word) for word in own) and "analysis" in before:
        words.insert(0, f"analysis=[{','.join(map(str, before.analysis))}]")
    words += [f"hydra.searchpath=[{Path(config_dir).resolve()}]"] if config_dir else []
    with initialize_config_dir(config_dir=str(folder()), version_base="1.3"):
        return _raw(compose("config", words))


def _raw(node: DictConfig) -> dict[str, Any]:
    """Top keys with what stands below them; nothing is resolved."""
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
