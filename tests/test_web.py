"""The command that serves the page: what it needs, in one sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from personalar import web


@pytest.mark.parametrize("module", ["personalar.runs.web.server", "gradio"])
def test_without_the_extra_a_sentence_says_how_to_install_it(
    monkeypatch, module: str, tmp_path: Path
) -> None:
    if module == "gradio":
        pytest.importorskip("starlette", reason="pip install -e '.[web]'")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=rf"^personalar.web: .*{module}.*: pip install 'personalar\[web\]'$"):
        web.main([f"--outputs={tmp_path}"])


def test_the_password_goes_to_the_server_and_to_no_command(monkeypatch, capsys, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="pip install -e '.[web]'")
    from personalar.runs.web import server

    served = Mock()
    monkeypatch.setattr(server, "serve", served)
    monkeypatch.setenv(web.PASSWORD, "secret")
    web.main([f"--outputs={tmp_path}", "--port=7"])
    served.assert_called_once_with(tmp_path, 7, "secret")
    assert web.PASSWORD not in os.environ and "secret" not in "".join(capsys.readouterr())
