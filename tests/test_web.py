"""The command that serves the page: what it needs, in one sentence, before anything is loaded."""

from __future__ import annotations

import os
import socket
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import pytest

from personalar import web


def missing(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("version", "said"),
    [(missing, "Gradio 6: pip"), (lambda _: "3.18.0", r"Gradio 6 \(this is 3.18.0\): pip")],
)
def test_without_the_extra_a_sentence_says_how_to_install_it(monkeypatch, version, said: str) -> None:
    monkeypatch.setattr(web.metadata, "version", version)
    with pytest.raises(
        SystemExit, match=rf"^personalar.web: the page needs {said} install 'personalar\[web\]'$"
    ):
        web.main([])


def test_a_port_in_use_is_named(monkeypatch) -> None:
    monkeypatch.setattr(web, "check_installed", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            SystemExit, match=rf"port {port} cannot be used \(.*\): choose another with --port"
        ):
            web.main([f"--port={port}"])


def test_the_password_goes_to_the_server_and_to_no_command(monkeypatch, capsys, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="pip install -e '.[web]'")
    from personalar.runs.web import server

    served = Mock()
    monkeypatch.setattr(server, "serve", served)
    monkeypatch.setattr(web, "check_installed", lambda: None)
    monkeypatch.setattr(web, "check_port", lambda _: None)
    monkeypatch.setenv(web.PASSWORD, "secret")
    web.main([f"--outputs={tmp_path}", "--port=7"])
    served.assert_called_once_with(tmp_path, 7, "secret")
    assert web.PASSWORD not in os.environ and "secret" not in "".join(capsys.readouterr())
