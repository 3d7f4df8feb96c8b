"""A live module with its tokenizer, as evaluators get them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ant(family: Path) -> tuple[Any, Any]:
    from souping.core.protocols import ModuleSettings
    from souping.evaluate.engines.transformers import load_module, load_tokenizer

    return load_module(family / "ant", ModuleSettings()), load_tokenizer(family / "ant")


@pytest.fixture
def served(ant: tuple[Any, Any]) -> Any:
    return SimpleNamespace(module=ant[0], tokenizer=ant[1], folder=None, eos_token_ids=())
