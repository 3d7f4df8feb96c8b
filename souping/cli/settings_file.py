"""A file of settings, `souping FILE.yaml`: keys dotted or nested, as an overlay of the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from souping.cli.advice import key_advice
from souping.cli.commands import OVERLAY, SETTINGS_FILES, SettingsFile
from souping.cli.config_keys import CHOSEN, SETTABLE, is_key
from souping.core.fields import text_of
from souping.core.parsing import read_yaml_node
from souping.core.system import program
from souping.core.text import first_line
from souping.core.types import UserError, frozen
from souping.report.format import quoted
from souping.report.progress import command_of

SUFFIXES = (".yaml", ".yml")


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

    The file's choices become overrides, and come first. Its values become an overlay in Hydra's configuration store,
    because not all of them could be written as overrides. A key that is also typed is left out of both: what is typed
    wins.

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
        elif keys.isdisjoint(map(_dotted, _keys(setting.names))):
            _put(overlay, setting)
    group, name = OVERLAY.lstrip("+").split("=")
    ConfigStore.instance().store(name, OmegaConf.create(overlay), group, "_global_")
    SETTINGS_FILES.append(
        SettingsFile(name=files[0], words=(*chosen, OVERLAY), keys=tuple(overlay))
    )
    return [*chosen, *typed, OVERLAY]


def _keys(names: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The keys that names pass through, the shortest first: `guard` and `guard.x` for the names of `guard.x`."""
    starts = [names[:length] for length in range(1, len(names) + 1)]
    return list(filter(is_key, starts))


def _dotted(names: tuple[Any, ...]) -> str:
    """A key as it is typed."""
    return ".".join(map(str, names))


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

    @property
    def settings(self) -> list[Setting]:
        """The settings of the file (UserError: it has none, or one that no file can have)."""
        # {names of a key: the line that sets it}
        lines = dict[tuple[Any, ...], int]()
        # Shorter keys first: `expected` before `expected.a`, which is set twice then.
        settings = sorted(self._below(self._root(), ()), key=lambda each: len(each.names))
        for setting in settings:
            self._check(setting)
            for key in _keys(setting.names):
                if key in lines:
                    raise self._twice(_dotted(setting.names), lines[key], setting.line)
            lines[setting.names] = setting.line
        return settings

    def _root(self) -> yaml.MappingNode:
        """The mapping that the file is."""
        if not self._path.is_file():
            raise UserError(f"{self._path}: there is no such file of settings")
        text = text_of(self._path)
        try:
            node = read_yaml_node(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._error(mark.line + 1, f"not YAML: {error.problem}") from error
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1
            raise self._error(line, f"not YAML: {error.reason}") from error
        except ValueError as error:
            raise UserError(f"{self._path}: {first_line(error)}") from error
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{self._path}: write one KEY: VALUE per line")
        return node

    def _below(self, node: yaml.MappingNode, above: tuple[Any, ...]) -> Iterator[Setting]:
        """The settings in a mapping; `above` are the names of its key."""
        for key, inner, line in self._entries(node):
            # Dots separate the names of a key. Below a key, they belong to a name that the user chose.
            names = (*above, *([key] if is_key(above) else str(key).split(".")))
            if isinstance(inner, yaml.MappingNode) and inner.value:
                yield from self._below(inner, names)
            else:
                yield Setting(names=names, value=self._plain(inner), line=line)

    def _entries(self, node: yaml.MappingNode) -> Iterator[tuple[Any, yaml.Node, int]]:
        """(key, node of its value, line of the key) of each entry of a mapping."""
        lines = dict[Any, int]()
        for key_node, inner in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(line, "a key is a text, not a list or a mapping")
            key = self._plain(key_node)
            if "_target_" in str(key):
                raise self._error(line, f"{key} names a class: {self._advice()}")
            if key in lines:
                raise self._twice(key, lines[key], line)
            lines[key] = line
            yield key, inner, line

    def _plain(self, node: yaml.Node) -> Any:
        """The value of a node."""
        if isinstance(node, yaml.MappingNode):
            return {key: self._plain(inner) for key, inner, _ in self._entries(node)}
        if isinstance(node, yaml.SequenceNode):
            return list(map(self._plain, node.value))
        # Dates, `=` and `<<` are texts.
        if node.tag.endswith((":timestamp", ":value", ":merge")):
            return node.value
        try:
            return yaml.constructor.SafeConstructor().construct_document(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self._error(node.start_mark.line + 1, first_line(error)) from error

    def _check(self, setting: Setting) -> None:
        """Refuse Hydra's own keys, those that commands set, unknown keys, and values that OmegaConf cannot hold."""
        key = _dotted(setting.names)
        root = str(setting.names[0])
        if root.startswith("hydra"):
            raise self._error(setting.line, f"{key}: type Hydra's own settings on the command line")
        if root == "action":
            advice = f"{program()} plan {self._path}"
            raise self._error(setting.line, f"{key} is set by commands: {advice}")
        if root not in SETTABLE and not setting.chooses:
            raise self._error(setting.line, f"{key} is not a key{key_advice(key, SETTABLE)}")
        try:
            OmegaConf.create({setting.names[-1]: setting.value})
        except (OmegaConfBaseException, ValueError) as error:
            advice = "; write \\${ for the text ${" * ("${" in str(setting.value))
            raise self._error(setting.line, f"{key}: {first_line(error)}{advice}") from error

    def _error(self, line: int, what: str) -> UserError:
        return UserError(f"{self._path}:{line}: {what}")

    def _twice(self, key: Any, *lines: int) -> UserError:
        """The error of a key that two lines set."""
        first, second = sorted(lines)
        return self._error(second, f"{key} is set in line {first} too: leave one out")

    def _advice(self) -> str:
        """What to do about a file that names classes: a run's own configuration has a command that made it."""
        command = command_of(self._path.parent)
        if command and self._path.name == "config.yaml":
            return f"repeat the run that wrote this file by its command:\n{command}"
        return "write GROUP: CHOICE"
