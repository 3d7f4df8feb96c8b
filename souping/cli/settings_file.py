"""A file of settings, `souping FILE.yaml`: keys dotted or nested, as an overlay of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from souping.cli.advice import key_advice
from souping.cli.commands import OVERLAY, SETTINGS_FILES, SettingsFile
from souping.cli.config import CHOSEN, SETTABLE, is_key
from souping.core.fields import text_of
from souping.core.parsing import read_yaml_node
from souping.core.system import program
from souping.core.text import first_line
from souping.core.types import UserError, frozen
from souping.report.format import quoted
from souping.report.progress import command_of

SUFFIXES = (".yaml", ".yml")
OVERLAYS = re.compile(r"\+[a-z_]\w*", re.ASCII)
"""Keys that add an overlay of the user's own."""
YAML = "tag:yaml.org,2002:"
"""Start of the tags of YAML's own types."""
TEXTS = ("timestamp", "value", "merge")
"""Types of scalars that are texts here: dates, `=` and `<<`."""
KINDS = ("null", "bool", "int", "float", "str", "seq", "map", *TEXTS)
"""Types that a value may have."""


@frozen
class Setting:
    """A value of a file with the names of its key, of mappings also those below it, and its line."""

    names: tuple[Any, ...]
    value: Any
    line: int

    @property
    def chooses(self) -> bool:
        """Whether this chooses components or adds an overlay (`+experiment`): it is composed as an override."""
        key = str(self.names[0])
        return len(self.names) == 1 and (key in (*CHOSEN, "experiment") or key.startswith("+"))


def with_file(words: Sequence[str]) -> list[str]:
    """The overrides of a command, with those that stand for a file of settings in its place.

    The file's choices come first. Its values are an overlay in Hydra's configuration store, as they are: not all of
    them could be written as overrides. What is typed too is left out of both.

    Raises:
        UserError: there are two files, one cannot be read, or it has a key that no file can set.
    """
    SETTINGS_FILES.clear()
    files = [word for word in words if word.endswith(SUFFIXES) and "=" not in word]
    if not files:
        return list(words)
    if len(files) > 1:
        raise UserError(f"{files[0]} and {files[1]}: give one file of settings")
    typed = [word for word in words if word not in files]
    keys = {word.partition("=")[0].lstrip("+") for word in typed}
    chosen = []
    overlay = dict[str, Any]()
    for setting in _Reader(Path(files[0])).settings:
        if setting.chooses:
            if str(setting.names[0]).lstrip("+") not in keys:
                chosen.append(f"{setting.names[0]}={_choice(setting.value)}")
        elif not _is_typed(setting.names, keys):
            _put(overlay, setting)
    group, name = OVERLAY.lstrip("+").split("=")
    ConfigStore.instance().store(name, OmegaConf.create(overlay), group, "_global_")
    SETTINGS_FILES.append(
        SettingsFile(name=files[0], words=(*chosen, OVERLAY), keys=tuple(overlay))
    )
    return [*chosen, *typed, OVERLAY]


def _is_typed(names: Sequence[Any], typed: set[str]) -> bool:
    """Whether the key that the names lead to is among the typed keys."""
    starts = [names[:length] for length in range(1, len(names) + 1)]
    return any(is_key(start) and ".".join(map(str, start)) in typed for start in starts)


def _put(table: dict[Any, Any], setting: Setting) -> None:
    """Set a value in nested mappings."""
    for name in setting.names[:-1]:
        table = table.setdefault(name, {})
    table[setting.names[-1]] = setting.value


def _choice(value: Any) -> str:
    """The name of a choice, or a list of names, in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_choice, value))}]"
    return "null" if value is None else quoted(str(value))


class _Reader:
    """Reader of a file of settings; its errors name the file and the line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._construct = yaml.constructor.SafeConstructor().construct_object

    @property
    def settings(self) -> list[Setting]:
        """The settings of the file (UserError: it has none, or one that no file can have)."""
        # Shorter keys first: `expected` before `expected.a`, which is set twice then.
        settings = sorted(self._below(self._root(), ()), key=lambda each: len(each.names))
        lines = dict[tuple[Any, ...], int]()
        for setting in settings:
            for length in range(1, len(setting.names) + 1):
                start = setting.names[:length]
                if start in lines and is_key(start):
                    raise self._twice(setting.names, lines[start], setting.line)
            lines[setting.names] = setting.line
            self._check_value(setting)
        return settings

    def _check_value(self, setting: Setting) -> None:
        """Refuse what no configuration can hold: some keys, and `${` that begins no interpolation."""
        try:
            OmegaConf.create({setting.names[-1]: setting.value})
        except (OmegaConfBaseException, ValueError) as error:
            advice = "; write \\${ for the text ${" * ("${" in str(setting.value))
            key = ".".join(map(str, setting.names))
            raise UserError(
                f"{self._path}:{setting.line}: {key}: {first_line(error)}{advice}"
            ) from error

    def _root(self) -> yaml.MappingNode:
        """The mapping that the file is."""
        if not self._path.is_file():
            raise UserError(f"{self._path}: there is no such file of settings")
        text = text_of(self._path)
        try:
            node = read_yaml_node(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise UserError(f"{self._path}:{mark.line + 1}: not YAML: {error.problem}") from error
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1
            raise UserError(f"{self._path}:{line}: not YAML: {error.reason}") from error
        except ValueError as error:
            raise UserError(f"{self._path}: {first_line(error)}") from error
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{self._path}: write one KEY: VALUE per line")
        return node

    def _below(self, node: yaml.MappingNode, above: tuple[Any, ...]) -> Iterator[Setting]:
        """The settings in a mapping; `above` are the names of its key."""
        for key, inner, line in self._entries(node):
            names = (*above, key)
            # A name in a mapping that is a value may have dots: it is a user's.
            if not is_key(above):
                names = (*above, *str(key).split("."))
            if not above:
                self._check_root(names, inner, line)
            if isinstance(inner, yaml.MappingNode) and inner.value:
                yield from self._below(inner, names)
            else:
                yield Setting(names=names, value=self._plain(inner), line=line)

    def _check_root(self, names: Sequence[str], node: yaml.Node, line: int) -> None:
        """Refuse a key of Hydra, of commands, or of nobody."""
        where = f"{self._path}:{line}: {'.'.join(names)}"
        if names[0].startswith("hydra"):
            raise UserError(f"{where}: type Hydra's own settings on the command line")
        if names[0] == "action":
            raise UserError(f"{where} is set by commands: {program()} plan {self._path}")
        adds = OVERLAYS.fullmatch(".".join(names)) and isinstance(node, yaml.ScalarNode)
        if names[0] not in (*SETTABLE, "experiment") and not adds:
            raise UserError(f"{where} is not a key{key_advice('.'.join(names), SETTABLE)}")

    def _entries(self, node: yaml.MappingNode) -> Iterator[tuple[Any, yaml.Node, int]]:
        """(key, node of its value, line of the key) of each entry of a mapping."""
        lines = dict[Any, int]()
        for key_node, inner in node.value:
            key = self._plain(key_node)
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{self._path}:{line}: a key is a text, not a list or a mapping")
            if "_target_" in str(key):
                raise UserError(f"{self._path}:{line}: {key} names a class{self._advice()}")
            if key in lines:
                raise self._twice([key], lines[key], line)
            lines[key] = line
            yield key, inner, line

    def _plain(self, node: yaml.Node) -> Any:
        """The value of a node."""
        kind = node.tag.removeprefix(YAML)
        if kind not in KINDS:
            raise UserError(f"{self._path}:{_line(node)}: {node.tag} is no type of a setting")
        if isinstance(node, yaml.MappingNode):
            return {key: self._plain(inner) for key, inner, _ in self._entries(node)}
        if isinstance(node, yaml.SequenceNode):
            return list(map(self._plain, node.value))
        if kind in TEXTS:
            return node.value
        try:
            return self._construct(node)
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{self._path}:{_line(node)}: {first_line(error)}") from error

    def _twice(self, names: Sequence[Any], *lines: int) -> UserError:
        """The error of a key that two lines set."""
        first, second = sorted(lines)
        key = ".".join(map(str, names))
        return UserError(f"{self._path}:{second}: {key} is set in line {first} too: leave one out")

    def _advice(self) -> str:
        """What to do about a file that names classes: a run's own configuration has a command that made it."""
        command = command_of(self._path.parent)
        if self._path.name == "config.yaml" and command:
            return f", as the configuration of a run does; this command repeats the run:\n{command}"
        return ": write GROUP: CHOICE"


def _line(node: yaml.Node) -> int:
    """The line on which a node begins."""
    return int(node.start_mark.line) + 1
