"""A file of settings, `souping FILE.yaml`: keys as they are typed, one a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from souping.core.fields import text_of
from souping.core.parsing import read_yaml
from souping.core.text import first_line
from souping.core.types import UserError
from souping.report.format import quoted

SUFFIXES = (".yaml", ".yml")


def with_file(words: Sequence[str]) -> list[str]:
    """The words after a command, where a file of settings in the first place is replaced by its overrides.

    Keys that are typed too are left out of these.
    """
    if not words or not words[0].endswith(SUFFIXES) or "=" in words[0]:
        return list(words)
    typed = {word.partition("=")[0].lstrip("+") for word in words[1:]}
    overrides = []
    for key, value in _settings(Path(words[0])).items():
        if key.lstrip("+") not in typed:
            overrides.append(f"{key}={_typed(value)}")
    return [*overrides, *words[1:]]


def _settings(path: Path) -> dict[str, Any]:
    """{key: value} of a file (UserError if it is none, or names classes or Hydra's keys)."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of settings")
    import yaml

    try:
        table = read_yaml(text_of(path))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not YAML: {first_line(error)}") from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: write one KEY: VALUE a line")
    settings = {str(key): value for key, value in table.items()}
    for key, value in settings.items():
        if _names_class({key: value}):
            raise UserError(
                f"{path}: {key} names a class, as the configuration of a run does: write keys as you type them"
            )
        if key.lstrip("+").startswith("hydra"):
            raise UserError(f"{path}: {key}: type Hydra's own settings on the command line")
    return settings


def _names_class(value: Any) -> bool:
    """Whether a mapping anywhere in the value has a key `_target_`."""
    if isinstance(value, Mapping):
        return any("_target_" in str(key) or _names_class(value[key]) for key in value)
    return isinstance(value, list) and any(map(_names_class, value))


def _typed(value: Any) -> str:
    """A value as it is typed in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        pairs = [f"{_typed(key)}: {_typed(inner)}" for key, inner in value.items()]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    # An interpolation stays one.
    if not isinstance(value, str) or value.startswith("${"):
        return str(value)
    return quoted(value)
