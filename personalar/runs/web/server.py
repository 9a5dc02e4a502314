"""The server of the page: on this machine only, with a password if one is set, and nothing from elsewhere."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personalar.runs.web.jobs import Jobs
from personalar.runs.web.markup import SERVED
from personalar.runs.web.photo_sets import LARGEST_FILE

HOSTS = ("127.0.0.1", "localhost")
OWN_PAGE = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; img-src 'self' data: blob:; "
    "frame-ancestors 'none'"
)
OF_RUNS = "sandbox allow-scripts allow-popups; default-src 'self' data: 'unsafe-inline'; connect-src 'none'"
"""For reports and uploads, which may be a stranger's: no request in the name of the person who looks."""


class Guard:
    """Answers only requests to this machine's own names, from its own page, and with the password."""

    def __init__(self, app: ASGIApp, password: str | None) -> None:
        """Guard `app`; any user name goes with the password."""
        self.app, self._password = app, password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":  # a websocket gets no answer: the page uses none
                await self.app(scope, receive, send)
            return
        refusal = self.refusal(Headers(scope=scope))
        policy = OF_RUNS if scope["path"].startswith(f"{SERVED}/") else OWN_PAGE

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await (refusal or self.app)(scope, receive, guarded)

    def refusal(self, headers: Headers) -> PlainTextResponse | None:
        """Return the answer to a request that is refused."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return PlainTextResponse("open this page as http://127.0.0.1:PORT", status_code=421)
        if origin is not None and origin.partition("://")[2] != host:
            return PlainTextResponse("only this page itself may ask", status_code=403)
        if self._password is not None and not self._knows(headers.get("authorization", "")):
            ask = {"WWW-Authenticate": 'Basic realm="personalar", charset="UTF-8"'}
            return PlainTextResponse("a password is needed", status_code=401, headers=ask)
        return None

    def _knows(self, authorization: str) -> bool:
        kind, _, text = authorization.partition(" ")
        try:
            given = base64.b64decode(text, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == "basic" and secrets.compare_digest(given, str(self._password).encode())


def make_app(outputs: Path, password: str | None = None) -> ASGIApp:
    """Return the page for the runs in `outputs`, with its guard."""
    jobs = Jobs(outputs)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(jobs.own / "cache")  # uploads and copies of pictures
    jobs.own.mkdir(parents=True, exist_ok=True)
    import gradio
    from fastapi import FastAPI

    from personalar.runs.web.screens import make_page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount(SERVED, StaticFiles(directory=jobs.outputs))
    theme = gradio.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    gradio.mount_gradio_app(
        app,
        make_page(jobs),
        path="/",
        allowed_paths=[str(jobs.outputs)],
        max_file_size=LARGEST_FILE,
        ssr_mode=False,
        pwa=False,
        theme=theme,
        css_paths=Path(__file__).with_name("style.css"),
        footer_links=[],
    )
    return Guard(app, password)


def serve(outputs: Path, port: int, password: str | None) -> None:
    """Serve the page until Ctrl-C."""
    import uvicorn

    uvicorn.run(make_app(outputs, password), host=HOSTS[0], port=port, log_level="warning", access_log=False)
