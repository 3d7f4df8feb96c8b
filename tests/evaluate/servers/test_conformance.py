"""Servers: what every one promises before it serves; `test_servers.py` starts one for real."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from souping import pantry
from souping.core.types import UserError, digest
from souping.evaluate.servers.choices import Server, TransformersServer, VllmServer
from souping.evaluate.servers.process import free_port


@pytest.fixture(params=[TransformersServer(device="cpu"), VllmServer()], ids=lambda s: type(s).__name__)
def server(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_settings_are_plain_and_name_the_server(server: Any) -> None:
    assert isinstance(server, Server)
    assert server.settings["name"] in ("transformers", "vllm")
    assert json.loads(json.dumps(server.settings)) == server.settings


def test_what_changes_answers_changes_the_settings(server: Any) -> None:
    for change in ({"dtype": "float16"}, {"extra_args": ["--x"]}, {"url": "http://127.0.0.1:1"}):
        assert digest(replace(server, **change).settings) != digest(server.settings)


def test_what_changes_no_answer_changes_no_settings(server: Any) -> None:
    assert replace(server, port=5, timeout=3.0, python="/usr/bin/python3").settings == server.settings


@pytest.mark.parametrize(
    "change",
    [
        {"port": 0},
        {"port": 70000},
        {"timeout": 0.0},
        {"url": "127.0.0.1:8000"},
        {"url": "http://"},
        {"url": "http://u:key@h"},
        {"url": "http://h?x=1"},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(server: Any, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"server\.\w+=|Server\(\w+="):
        replace(server, **change)


def test_an_interpreter_without_the_packages_is_named(server: Any, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"python has no .*: .*python -m pip install") as told:
        replace(server, python=str(bare)).start(pantry.path("python_cook"), "m")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"server.python=/nowhere/python cannot be run"):
        replace(server, python="/nowhere/python").check()


def test_a_found_server_that_is_not_there(server: Any) -> None:
    with pytest.raises(UserError, match=r"server.url=\S+ does not answer: .*refused"):
        replace(server, url=f"http://127.0.0.1:{free_port()}").start(pantry.path("python_cook"), "m")


def test_the_models_port_and_folder_are_on_the_command_line(server: Any) -> None:
    command = replace(server, extra_args=["--one", "two"]).command(Path("/m"), 81)
    assert command[command.index("--port") + 1] == "81"
    assert "/m" in command
    assert command[-2:] == ["--one", "two"]


def test_its_host_says_where_the_model_is(server: Any) -> None:
    host = replace(server, dtype="float16", url="http://127.0.0.1:1").host
    assert (host.dtype, host.url) == ("float16", "http://127.0.0.1:1")
    assert server.host.url is None
    assert 0 < server.host.fraction <= 1
    if isinstance(server, VllmServer):
        spread = replace(server, tensor_parallel_size=2, gpu_memory_utilization=0.5).host
        assert (spread.gpus, spread.fraction) == (2, 0.5)


def test_what_it_lacks_is_what_it_refuses(server: Any, tmp_path: Path) -> None:
    assert [one.what for one in replace(server, python="/nowhere/python").needs()] == [
        "server.python=/nowhere/python cannot be run: [Errno 2] No such file or directory: '/nowhere/python'"
    ]
    (gone,) = replace(server, url=f"http://127.0.0.1:{free_port()}").needs()
    assert "does not answer" in gone.what
    there = tmp_path / "python"
    there.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\n')
    there.chmod(0o755)
    assert replace(server, python=str(there)).needs() == []
