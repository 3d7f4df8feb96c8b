"""A live module with its tokenizer, as evaluators get them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.models import HeldModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def ant(family: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from souping.core.protocols import ModuleSettings
    from souping.evaluate.engines.transformers import load_module, load_tokenizer

    return load_module(family / "ant", ModuleSettings()), load_tokenizer(family / "ant")


@pytest.fixture
def served(ant: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> HeldModel:
    return HeldModel(module=ant[0], tokenizer=ant[1])
