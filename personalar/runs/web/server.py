"""The server of the page: only on this machine, with an optional password, without content of other hosts."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personalar.core.files import plain_name
from personalar.runs.web.jobs import Jobs
from personalar.runs.web.markup import ARCHIVE, SERVED
from personalar.runs.web.photo_sets import LARGEST_FILE

HOSTS = ("127.0.0.1", "localhost")
OWN_PAGE = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; img-src 'self' data: blob:; "
    "frame-ancestors 'none'"
)
OF_RUNS = "sandbox allow-scripts allow-popups; default-src 'self' data: 'unsafe-inline'; connect-src 'none'"
"""Policy for reports and uploads, which can come from other people: they cannot send requests."""


class Guard:
    """Answers only requests to this machine's own host names, from this page, and with the password."""

    def __init__(self, app: ASGIApp, password: str | None) -> None:
        """Protect `app`; with a password, any user name is accepted."""
        self.app, self._password = app, password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with an error."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":  # websockets get no answer, because the page uses none
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
        """Return the error response to a request that is not allowed; None if it is."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        # Against DNS rebinding: another site's name that resolves to 127.0.0.1.
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return PlainTextResponse("open this page as http://127.0.0.1:PORT", status_code=421)
        # Against requests that another site's page sends from this browser.
        if origin is not None and origin.partition("://")[2] != host:
            return PlainTextResponse(
                "this request came from another page: open http://127.0.0.1:PORT itself", status_code=403
            )
        if self._password is not None and not self._knows(headers.get("authorization", "")):
            ask = {"WWW-Authenticate": 'Basic realm="personalar", charset="UTF-8"'}
            return PlainTextResponse(
                "wrong or missing password: enter the one that the page was started with",
                status_code=401,
                headers=ask,
            )
        return None

    def _knows(self, authorization: str) -> bool:
        kind, _, text = authorization.partition(" ")
        try:
            given = base64.b64decode(text, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        # compare_digest takes the same time for every guess, so times reveal nothing.
        return kind.lower() == "basic" and secrets.compare_digest(given, str(self._password).encode())


def make_app(outputs: Path, password: str | None = None) -> ASGIApp:
    """Return the page for the runs in `outputs`, protected by `Guard`."""
    jobs = Jobs(outputs)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(jobs.own / "cache")  # uploads and copies of pictures
    jobs.own.mkdir(parents=True, exist_ok=True)
    # Only now, because it reads the environment when it is imported.
    import gradio
    from fastapi import FastAPI

    from personalar.runs.web.screens import make_page

    # Without the pages of FastAPI, which load scripts from another host.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.get(ARCHIVE)(lambda run: archive(jobs, run))
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


def archive(jobs: Jobs, run: str) -> Response:
    """Return the concept of a run as one file."""
    try:
        path = jobs.archive(run)
    except (ValueError, OSError) as error:
        return PlainTextResponse(str(error), status_code=404)
    name = plain_name(run, longest=60)
    return FileResponse(path, filename=f"{name}.zip", background=BackgroundTask(path.unlink))


def serve(outputs: Path, port: int, password: str | None) -> None:
    """Serve the page until Ctrl-C."""
    import uvicorn

    uvicorn.run(make_app(outputs, password), host=HOSTS[0], port=port, log_level="warning", access_log=False)
