"""JSON and YAML from somebody else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from souping.core.text import shown

if TYPE_CHECKING:
    import yaml

MAX_DEPTH = 100
"""Levels of lists and objects in JSON; no config, item or recipe has so many."""


def read_json(
    text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """JSON from somebody else; `pairs` is json's `object_pairs_hook`.

    Raises:
        ValueError: it is not JSON, nests deeper than code that walks it can bear, or has a number beyond all floats.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_float=_number, parse_int=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if nests_deeply(value):
        raise ValueError("nested too deeply")
    return value


def nests_deeply(value: Any) -> bool:
    """Whether JSON nests deeper than code that walks it can bear."""
    # The lists and objects at one depth, layer by layer.
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = list[Any]()
        for node in layer:
            if isinstance(node, dict):
                inner += node.values()
            elif isinstance(node, list):
                inner += node
        if not inner:
            return False
        layer = inner
    return True


def read_yaml(text: str | bytes) -> Any:
    """YAML from somebody else; errors as of `read_yaml_node`, and those of Python's types."""
    import yaml

    node = read_yaml_node(text)
    return None if node is None else yaml.constructor.SafeConstructor().construct_document(node)


def read_yaml_node(text: str | bytes) -> yaml.Node | None:
    """The node of YAML from somebody else, whose parts know their lines; None if the text is empty.

    Raises:
        ValueError: it nests without end.
        yaml.YAMLError: it is not YAML, or has aliases, a few lines of which fill any memory.
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        """Loader that refuses aliases."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(
                    problem="aliases (*NAME) are not read", problem_mark=mark
                )
            return super().compose_node(parent, index)

    try:
        return yaml.compose(text, PlainLoader)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(digits: str) -> int | float:
    """The number of a JSON text: an int if it has digits alone (ValueError if it is beyond all floats)."""
    if math.isinf(float(digits)):
        raise ValueError(f"the number {shown(digits)} is too large")
    if digits.lstrip("-").isdigit():
        return int(digits)
    return float(digits)
