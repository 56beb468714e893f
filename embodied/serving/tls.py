"""TLS from two files, which are tried before anybody connects."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from embodied.errors import UserError


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """
    Args:
        certificate: a PEM file, the server's own first.
        key: its private key, PEM, not encrypted.

    Raises:
        UserError: files that are missing, unreadable, of different pairs, or a certificate that is not valid now.
    """
    for file in (certificate, key):
        if not file.is_file():
            raise UserError(
                expected=f"the file {file}",
                found="none",
                remedy="correct tls.certificate and tls.key, or leave them out",
            )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise UserError(
            expected=f"a certificate and its own private key in {certificate} and {key}, PEM without a password",
            found=" ".join(str(error).split()),
            remedy="make them anew, for example with openssl req -x509",
        ) from error
    _check_validity(context, certificate)
    return context


def _no_password() -> str:
    raise ValueError("a key with a password")


def _check_validity(server: ssl.SSLContext, certificate: Path) -> None:
    """Shake hands with ourselves, as a client that trusts exactly this certificate.

    Raises:
        UserError: such a client refuses it, because it has expired for example.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # the names that clients use are theirs to check
    client.load_verify_locations(certificate)
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_side=False),
    ]
    try:
        for _ in range(4):  # flights of a handshake
            for side in reversed(sides):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or str(error)
        raise UserError(
            expected=f"a certificate in {certificate} that is valid now",
            found=" ".join(reason.split()),
            remedy="renew it, then start the server again",
        ) from error
