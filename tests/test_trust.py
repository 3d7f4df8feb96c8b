"""Code that a candidate brings does not run unless it is trusted, and nobody is asked on the terminal."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from souping.core.protocols import ModuleSettings
from souping.core.types import UserError
from souping.evaluate.engines.transformers import load_module, load_tokenizer
from tests.conftest import ROOT

LOADERS = ("from_pretrained", "from_config")
CALLS = [
    (path.relative_to(ROOT), node)
    for folder in ("souping", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS
]


def test_every_loader_is_told_whether_to_trust() -> None:
    """Left open, transformers asks on the terminal, and reads the answer from standard input."""
    silent = [
        f"{path}:{node.lineno}" for path, node in CALLS if "trust_remote_code" not in [key.arg for key in node.keywords]
    ]
    assert len(CALLS) > 5
    assert silent == []


@pytest.fixture
def folder(family: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer is code of its own, which leaves a trace."""
    shutil.copytree(family / "ant", tmp_path / "evil")
    trace = f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n"
    (tmp_path / "evil" / "evil.py").write_text(
        f"{trace}class Evil:\n    @classmethod\n    def from_pretrained(cls, *a, **k): return cls()\n"
        "    register_for_auto_class = classmethod(lambda cls: None)\n"
    )
    path = tmp_path / "evil" / "tokenizer_config.json"
    own = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    path.write_text(json.dumps(own | {"tokenizer_class": "Evil"}))
    return tmp_path / "evil"


def test_a_tokenizers_code_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"evaluator\.trust_remote_code=true"):
        load_tokenizer(folder)
    assert not (folder.parent / "RAN").exists()


def test_a_tokenizers_code_runs_where_it_is_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    load_tokenizer(folder, True)
    assert (folder.parent / "RAN").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "experts_implementation"])
def test_kernels_that_a_config_names_are_refused(family: Path, tmp_path: Path, key: str) -> None:
    """transformers would fetch compiled code from the Hub and run it."""
    folder = tmp_path / "model"
    shutil.copytree(family / "ant", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: "somebody/kernel"}))
    with pytest.raises(UserError, match=r"somebody/kernel.*evaluator\.trust_remote_code=true"):
        load_module(folder, ModuleSettings())
