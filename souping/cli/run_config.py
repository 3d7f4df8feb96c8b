"""Configuration in a run directory. It is data: whoever sent the directory wrote it, so that it may name only choices
that souping ships, and nothing that runs other code, unless the command line says `allow_code=true`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from souping.cli.help import folder
from souping.core.text import first_line, listed
from souping.core.types import UserError

LONGEST, DEEPEST = 200_000, 100
"""Bytes and levels of a configuration: more takes YAML longer than anybody waits."""
RUNS_CODE = re.compile(
    "scorers|command|python|extra_args|dir|address|trust_remote_code|confirm_run_unsafe_code|allow_code"
)
"""Settings by which a shipped choice imports a module, starts a program or joins a cluster that may send it code."""
ALLOW = re.compile(r"\+{0,2}allow_code=(true|True|1|yes|on)")


@cache
def shipped() -> frozenset[str]:
    """Classes and functions that the choices of this package name: all that a run directory may have built."""
    texts = (path.read_text(encoding="utf-8") for path in folder().rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"_target_:\s*([\w.]+)", text))


def read_config(path: Path) -> DictConfig:
    """A run's config.yaml; nothing in it is resolved yet.

    Raises:
        UserError: it cannot be read, or holds YAML aliases: a few lines of them fill any memory.
    """
    import yaml

    opening = (
        yaml.FlowSequenceStartToken,
        yaml.FlowMappingStartToken,
        yaml.BlockSequenceStartToken,
        yaml.BlockMappingStartToken,
    )
    closing = yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST + 1).decode("utf-8")
        if len(text) > LONGEST:
            raise ValueError(f"it has more than {LONGEST:,} characters")
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            depth += isinstance(token, opening) - isinstance(token, closing)
            if isinstance(token, yaml.AliasToken):
                raise ValueError("it has YAML aliases (*NAME), which no run writes")
            if depth > DEEPEST:  # the scanner's time grows with the square of the depth
                raise ValueError("it is nested too deeply")
        config = OmegaConf.create(text)
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
        part = "_target_" in value or key.startswith("also[")
        for name, inner in value.items():
            where = f"{key}.{name}" if key else str(name)
            foreign = name == "_target_" and inner not in shipped()
            inline = name == "tasks" and isinstance(inner, list) and any(isinstance(task, Mapping) for task in inner)
            if foreign or (part and (inline or (RUNS_CODE.fullmatch(str(name)) and inner))):
                yield where, inner
            else:
                yield from code_in(inner, where)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from code_in(inner, f"{key}[{number}]")
    elif isinstance(value, str) and re.search(r"(?<!\\)(\\\\)*\$\{", value):  # no run writes an interpolation
        yield key, value
