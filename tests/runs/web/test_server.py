"""Who may ask the server, and what a page of it may load."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

pytest.importorskip("starlette", reason="pip install -e '.[web]'")

from personalar.runs.web.server import Guard


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


def ask(password: str | None = None, path: str = "/", **headers: str) -> tuple[int, dict[str, str]]:
    """Return status and headers of the answer."""
    given = {"host": "127.0.0.1:7860", **headers}
    scope = {"type": "http", "path": path, "method": "GET",
             "headers": [(key.encode(), value.encode()) for key, value in given.items()]}  # fmt: skip
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(page, password)(scope, None, send))
    return sent[0]["status"], {key.decode(): value.decode() for key, value in sent[0]["headers"]}


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_only_this_machine_and_its_own_page_may_ask() -> None:
    assert ask()[0] == 200
    assert ask(host="localhost:80", origin="http://localhost:80")[0] == 200
    assert ask(host="evil.example:7860")[0] == 421  # a name that somebody pointed at 127.0.0.1
    for origin in ("https://evil.example", "null", "http://127.0.0.1:80"):
        assert ask(origin=origin)[0] == 403


@pytest.mark.parametrize(
    "given", [None, "", "Basic", "Basic !!", "Bearer x", basic("a:wrong"), basic("secret")]
)
def test_a_password_is_asked_for(given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    status, answered = ask("secret", **headers)
    assert status == 401 and "secret" not in str(answered)
    assert ask("secret", authorization=basic("anyone:secret"))[0] == 200


def test_nothing_is_loaded_from_elsewhere_and_reports_may_do_nothing() -> None:
    assert "default-src 'self'" in ask()[1]["content-security-policy"]
    assert ask(path="/runs/nano/cat/report.html")[1]["content-security-policy"].startswith(
        "sandbox allow-scripts "
    )
