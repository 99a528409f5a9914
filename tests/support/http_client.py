"""A small HTTP client for tests: JSON in, JSON or server-sent events out, over one socket each."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit


def ask(
    url: str, path: str, body: dict[str, Any] | None = None, timeout: float = 120.0
) -> tuple[int, Any]:
    """(status, parsed JSON). POST with a body, GET without."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            headers = {"content-type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
        kind = response.headers.get("content-type", "")
        return response.status, json.loads(text) if "json" in kind else text.decode()
    finally:
        connection.close()


class Stream:
    """A streamed answer, event by event. `close` is a client that goes away."""

    def __init__(self, url: str, path: str, body: dict[str, Any], timeout: float = 120.0):
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
        headers = {"content-type": "application/json"}
        self._connection.request("POST", path, json.dumps(body | {"stream": True}), headers)
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.done = False

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, Any]:
        while line := self._response.readline():
            if not line.startswith(b"data: "):
                continue
            content = line[len(b"data: ") :].strip()
            if content == b"[DONE]":
                self.done = True
                self._connection.close()
                raise StopIteration
            return json.loads(content)
        self._connection.close()
        raise StopIteration

    def close(self) -> None:
        # http.client keeps the socket open while the response lives.
        if self._response.fp is not None:
            self._response.close()
        self._connection.close()
