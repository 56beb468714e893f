"""The robot's side of a policy server: openpi's websocket protocol. Needs numpy, msgpack and websockets alone."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embodied import wire
from embodied.errors import UserError

Json = dict[str, Any]
LONGEST_REASON = 300  # letters of what a server says of its error that are shown: the end of it


class PolicyServerError(UserError):
    """The server cannot be reached, is gone, or does not answer."""


class PolicyServerRefusal(UserError):
    """The server answered that it cannot act on this observation."""


class PolicyClient:
    """One connection, which is one session of the server: a new one begins a new episode there.

    On connecting the server sends its metadata; after that each observation gets one answer.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        connect_timeout_s: float = 10.0,
        answer_timeout_s: float = 10.0,
    ) -> None:
        """
        Args:
            address: such as ws://127.0.0.1:8000.
            api_key: sent as `Authorization: Api-Key ...`.
            ca_file: PEM, of a wss:// address: certificates that are trusted in the place of the system's, such as a
                server's own one.
            connect_timeout_s: for the connection and for the metadata, each.
            answer_timeout_s: for one answer.

        Raises:
            UserError: no websocket address, a `ca_file` that is none, or websockets is not installed.
            PolicyServerError: nobody answers there, not as a policy server does, or with a certificate that is not
                trusted.
        """
        connect, self._errors = _websockets()
        self._address, self._timeout_s = address, answer_timeout_s
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        try:
            self._connection = connect(
                address,
                open_timeout=connect_timeout_s,
                close_timeout=1.0,
                compression=None,
                max_size=wire.LARGEST_MESSAGE_BYTES,
                additional_headers=headers,
                **_without_proxy(address),
                **_trust(address, ca_file),
            )
        except ssl.SSLCertVerificationError as error:
            raise PolicyServerError(
                expected=f"a certificate of {address} that is trusted here",
                found=error.verify_message,
                remedy="name the server's certificate as ca_file; one that has expired must be renewed there",
            ) from error
        except (OSError, TimeoutError, self._errors.InvalidHandshake) as error:
            raise PolicyServerError(
                expected=f"a policy server at {address}",
                found=_turned_away(error) or f"none that answers ({error or type(error).__name__})",
                remedy="start it, or correct the address",
            ) from error
        try:
            metadata = self._receive(connect_timeout_s)
        except UserError:
            self.close()
            raise
        self.metadata: Json = metadata if isinstance(metadata, dict) else {}

    def infer(self, observation: Json) -> Json:
        """The server's answer to one observation; `actions` [H A] is in it.

        Raises:
            PolicyServerError: the server is gone, or did not answer in time; the connection is of no use any more.
            PolicyServerRefusal: the server could not act on this observation. A server of this project goes on with the
                next one; others close the connection.
            UserError: an observation or an answer that the protocol has no form for.
        """
        message = wire.pack(observation)
        try:
            self._connection.send(message)
        except self._errors.ConnectionClosed as error:
            raise self._gone(error) from error
        answer = self._receive(self._timeout_s)
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            raise _refusal(answer["error"])
        if not isinstance(answer, dict) or "actions" not in answer:
            keys = ", ".join(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__
            raise PolicyServerRefusal(
                expected=f"an answer with 'actions' from {self._address}",
                found=keys or "an empty one",
                remedy="check that a policy is served there, by openpi's websocket protocol",
            )
        return answer

    def close(self) -> None:
        """End the session."""
        self._connection.close()

    def _receive(self, timeout_s: float) -> Any:
        try:
            frame = self._connection.recv(timeout=timeout_s)
        except TimeoutError as error:
            # A late answer would be taken for that of the next observation.
            self._connection.close()
            raise PolicyServerError(
                expected=f"an answer of {self._address} within {timeout_s:g} s",
                found="none",
                remedy="look into the server's log, or allow it more time (answer_timeout_s)",
            ) from error
        except self._errors.ConnectionClosed as error:
            raise self._gone(error) from error
        if isinstance(frame, str):  # the protocol's form of an error: its traceback
            raise PolicyServerRefusal(
                expected=f"actions from {self._address}",
                found=f"an error of the server: {' '.join(frame.split())[-LONGEST_REASON:]}",
                remedy="compare the observation's keys and shapes with what the policy expects",
            )
        return wire.unpack(frame)

    def _gone(self, error: Exception) -> PolicyServerError:
        return PolicyServerError(
            expected=f"the policy server at {self._address} to live on",
            found=f"a connection that it closed ({error})",
            remedy="look into the server's log, and start it again",
        )


def _turned_away(error: Exception) -> str:
    """What a server says in HTTP instead of a connection, a wrong key for example; "" if it said nothing."""
    response = getattr(error, "response", None)  # of websockets' InvalidStatus
    body = " ".join((getattr(response, "body", None) or b"").decode(errors="replace").split())[:LONGEST_REASON]
    return f"one that turns us away: {body} (HTTP {response.status_code})" if response is not None and body else ""


def _refusal(error: Json) -> PolicyServerRefusal:
    """What a server says of a request that it cannot serve: in parts if it is of this project, else in one message."""
    if "expected" not in error:
        return PolicyServerRefusal(
            expected="actions from the server",
            found=f"an error of it: {' '.join(str(error.get('message', error)).split())[:LONGEST_REASON]}",
            remedy="compare the observation's keys and shapes with what the policy expects",
        )
    said = {name: str(error.get(name, "not said"))[:LONGEST_REASON] for name in ("expected", "found", "remedy")}
    return PolicyServerRefusal(**said)


def _websockets() -> tuple[Any, Any]:
    try:
        from websockets import exceptions
        from websockets.sync.client import connect
    except ImportError as error:
        raise UserError(
            expected="the package websockets, to reach a policy server",
            found=str(error),
            remedy="pip install 'embodied-policies[serve]'",
        ) from error
    return connect, exceptions


def _without_proxy(address: str) -> Json:
    """A proxy of the environment never leads to this machine itself.

    Raises:
        UserError: no websocket address.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise UserError(
            expected="the address of a policy server, such as ws://127.0.0.1:8000",
            found=f"'{address}'",
            remedy="correct it",
        )
    return {"proxy": None} if _is_loopback(parts.hostname) else {}


def _trust(address: str, ca_file: str | Path | None) -> Json:
    """
    Raises:
        UserError: no such file, one without certificates, or an address without TLS.
    """
    if ca_file is None:
        return {}
    if not address.startswith("wss://"):
        raise UserError(
            expected="a wss:// address with ca_file", found=f"'{address}'", remedy="correct it, or leave ca_file out"
        )
    try:
        return {"ssl": ssl.create_default_context(cafile=ca_file)}
    except OSError as error:  # ssl's own errors too
        raise UserError(
            expected=f"certificates in PEM form in {ca_file}",
            found=error.strerror or str(error),
            remedy="name the server's certificate, or that of whoever signed it",
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
