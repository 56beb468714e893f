"""What a browser, a load balancer or Prometheus asks on the server's port: GET, one answer, closed."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus

from embodied.types import Json

JSON_TYPE, TEXT_TYPE = "application/json", "text/plain; charset=utf-8"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Page = tuple[HTTPStatus, str, bytes]  # status, content type, body


class HttpRoutes:
    """`/healthz` for anybody; `/metrics` and `/spec` for those who have the key, where there is one."""

    def __init__(self, *, state: Callable[[], str], metrics: Callable[[], bytes], spec: Callable[[], Json]) -> None:
        """
        Args:
            state: "OK" once robots are served, before and after that what is going on.
        """
        self._state, self._metrics, self._spec = state, metrics, spec

    def page(self, path: str, is_known: bool) -> Page | None:
        """None if this path is no page, but where robots connect.

        Args:
            is_known: the client has the key, or needs none.
        """
        path = path.partition("?")[0]
        if path == "/healthz":
            state = self._state()
            return text(HTTPStatus.OK if state == "OK" else HTTPStatus.SERVICE_UNAVAILABLE, state)
        if path not in ("/metrics", "/spec"):
            return None
        if not is_known:
            return unauthorized()
        if path == "/metrics":
            return HTTPStatus.OK, METRICS_TYPE, self._metrics()
        return HTTPStatus.OK, JSON_TYPE, json.dumps(self._spec(), indent=2).encode() + b"\n"


def text(status: HTTPStatus, line: str) -> Page:
    return status, TEXT_TYPE, f"{line}\n".encode()


def unauthorized() -> Page:
    return text(HTTPStatus.UNAUTHORIZED, "a header 'Authorization: Api-Key ...' with the right key is needed here")
