"""Send a question to an OpenAI-compatible server, with retries, without exposing the API key.

The key is read from an environment variable and sent in a header. It is never stored in an attribute or file
and never part of a message.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from personalar.core.files import parse_json

AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""HTTP status codes after which a retry can succeed."""
LARGEST_ANSWER = 4 << 20
"""Bytes that are read of an answer."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, even if the server's Retry-After is longer."""
HERE = ("localhost", "127.0.0.1", "::1")
"""Hosts to which a key may be sent without encryption."""


class Unanswered(Exception):
    """The reason, in a few words, why there is no answer."""


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because that would send the key to another server."""

    def redirect_request(self, *args: Any) -> None:
        """Do not redirect."""
        return


class Endpoint:
    """Client for the chat completions of a server.

    Args:
        url: address of the API, including /v1.
        key_variable: environment variable with the API key; if None or unset, no key is sent.
        timeout: seconds without data from the server.
        attempts: largest number of attempts per question.
        wait: seconds before the second attempt; doubled before each further one.
    """

    def __init__(
        self, url: str | None, *, key_variable: str | None, timeout: float, attempts: int, wait: float
    ) -> None:
        if not url:
            raise ValueError("no server: set scorer.url=https://HOST/v1")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"scorer.url={parts.hostname or url[:40]!r} is not a URL; allowed: https://HOST/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "scorer.url contains a name, a password or a query, which would stand in every result: give "
                "the plain URL, and the key in the environment variable OPENAI_API_KEY"
            )
        has_key = bool(key_variable and os.environ.get(key_variable))
        if has_key and parts.scheme == "http" and parts.hostname not in HERE:
            raise ValueError(
                f"the key in {key_variable} would go to {parts.hostname} unencrypted: use an https:// URL, "
                "or scorer.extra.vlm.key_variable=null to send none"
            )
        self.url, self.key_variable = url.rstrip("/"), key_variable
        self.timeout, self.attempts, self.wait = timeout, attempts, wait
        self.opener = urllib.request.build_opener(_StayHere)

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a chat completion request and return the JSON answer.

        Raises:
            Unanswered: there is no valid answer after all attempts.
        """
        for attempt in range(self.attempts):
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                reason, again = f"HTTP {error.code}", error.code in AGAIN
                asked = error.headers.get("Retry-After")
                error.close()
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                cause = getattr(error, "reason", error)
                slow = isinstance(cause, TimeoutError)
                reason, again, asked = "timeout" if slow else "no connection", True, None
            if not again or attempt + 1 == self.attempts:
                break
            # Exponential backoff: most failures here are rate limits.
            time.sleep(self._pause(attempt, asked))
        raise Unanswered(reason)

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_variable or "")
        # Read here and kept only in this call.
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", data=json.dumps(body).encode(), headers=headers
        )
        with self.opener.open(request, timeout=self.timeout) as response:
            # A limit, because the server is not trusted.
            data = response.read(LARGEST_ANSWER)
        try:
            found = parse_json(data.decode(errors="replace"))
        except ValueError as error:
            raise Unanswered("not JSON") from error
        if not isinstance(found, dict):
            raise Unanswered("not a chat completion")
        return found

    def _pause(self, attempt: int, asked: str | None) -> float:
        seconds = self.wait * 2**attempt
        # Retry-After can also be a date, which is ignored.
        if asked and asked.strip().isdecimal():
            seconds = max(seconds, float(asked))
        return min(seconds, LONGEST_WAIT)
