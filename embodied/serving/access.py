"""Who may speak to the server: loopback without a key, others with one; and how fast."""

from __future__ import annotations

import hmac
import ipaddress

from embodied.errors import UserError

API_KEY_VARIABLE = "EMBODIED_API_KEY"


def is_loopback(host: str) -> bool:
    """Whether an address leads to this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, api_key: str | None, allows_anybody: bool) -> None:
    """
    Raises:
        UserError: anybody who reaches the address could move the robot.
    """
    if is_loopback(host) or api_key or allows_anybody:
        return
    raise UserError(
        expected=f"an API key for the public address {host}",
        found=f"none in {API_KEY_VARIABLE}",
        remedy=f"set {API_KEY_VARIABLE}, listen on 127.0.0.1, or set allow_anybody=true",
    )


def may_enter(authorization: str | None, api_key: str | None) -> bool:
    """Whether the header `Authorization: Api-Key ...` has the key; takes as long for any wrong one."""
    if not api_key:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    return hmac.compare_digest(_bytes(given), _bytes(api_key)) and scheme == "Api-Key"


def _bytes(text: str) -> bytes:
    """As they came: headers and the environment hold what is not ASCII or UTF-8 as surrogates."""
    return text.encode(errors="surrogateescape")


class TokenBucket:
    """A rate limit that lets short bursts through."""

    def __init__(self, per_s: float, burst_s: float = 1.0) -> None:
        """
        Args:
            per_s: lasting rate.
            burst_s: as many at once as the lasting rate allows in this time.
        """
        self.per_s = per_s
        self._most = max(1.0, per_s * burst_s)
        self._tokens = self._most
        self._last_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Whether one more is allowed now."""
        if self._last_s is not None:
            self._tokens = min(self._most, self._tokens + (now_s - self._last_s) * self.per_s)
        self._last_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
