"""The prompt handlers that an installed bfcl-eval has for models that are served here, read without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from souping.core import UserError
from souping.evaluate.bfcl.environment import Environment
from souping.names import nearest

OWN = ("chat-template", "plain")
"""Handlers of ours: the tokenizer's chat template below BFCL's system prompt, and a short prompt without a template."""
SERVED_APIS = ("FunctionaryHandler",)
"""Handlers that ask by chat completions and whose server is one's own; the other APIs are vendors'."""


@lru_cache(maxsize=4)
def registered(package: Path) -> tuple[str, ...]:
    """Names of bfcl-eval's model registry whose handlers can ask a server of ours."""
    tree = ast.parse((package / "constants" / "model_config.py").read_text(encoding="utf-8"))
    return tuple(name for table, name, kind in _entries(tree) if "local" in table or kind in SERVED_APIS)


def _entries(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(table, model name, handler's class) of every entry of the registry."""
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)):
            continue
        table = ast.unparse(node.targets[0])
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Call):
                kinds = [ast.unparse(k.value) for k in value.keywords if k.arg == "model_handler"]
                yield table, str(key.value), kinds[0] if kinds else ""


def check_handlers(environment: Environment, names: Sequence[str]) -> None:
    """Refuse, before any work, a handler that is not there.

    Raises:
        UserError: the nearest name is named.
    """
    known = (*OWN, *registered(environment.package))
    for name in names:
        if name not in known:
            raise UserError(
                f"evaluator.handler: {name!r} is neither {' nor '.join(OWN)} nor a model of bfcl-eval's registry that "
                f"can be served here{nearest(name, known)}"
            )
