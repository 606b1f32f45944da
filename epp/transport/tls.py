"""TLS inside the protocol: `ssl.SSLObject` over memory, so that a wake-up costs one decryption and one encryption.

asyncio's own TLS transport calls the protocol once per record and encrypts per write; here everything that arrived is
fed at once, and everything that was written leaves as one piece.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable
from datetime import datetime

from epp.transport.call import TlsCodec, TlsError
from epp.transport.certificates import load_pair, read_pair, self_signed
from epp.transport.cipher_suites import openssl_names

_RECORD = 16 * 1024  # what OpenSSL gives at once at most; asking for more only costs memory
_VERSIONS = {
    "VersionTLS10": ssl.TLSVersion.TLSv1,
    "VersionTLS11": ssl.TLSVersion.TLSv1_1,
    "VersionTLS12": ssl.TLSVersion.TLSv1_2,
    "VersionTLS13": ssl.TLSVersion.TLSv1_3,
}


def server_context(
    cert_path: str | os.PathLike[str] | None,
    *,
    now: datetime,
    min_version: str = "",
    cipher_suites: str = "",
    client_ca: str | os.PathLike[str] | None = None,
) -> ssl.SSLContext:
    """The context of the ext_proc port; ValueError names the flag that is wrong and what it may be.

    `cert_path`: directory with `tls.crt` and `tls.key`, empty or None for a self-signed certificate, made at `now`.
    `min_version`: `VersionTLS10` to `VersionTLS13`, empty for 1.2. `cipher_suites`: comma-separated IANA names, for
    TLS 1.2 and older; 1.3 has its own. `client_ca`: a PEM file; the peer must then show a certificate signed by it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if min_version and min_version not in _VERSIONS:
        raise ValueError(f"--tls-min-version: {min_version!r} is none of {', '.join(_VERSIONS)}")
    context.minimum_version = _VERSIONS[min_version or "VersionTLS12"]
    if cipher_suites.strip():
        context.set_ciphers(openssl_names(cipher_suites))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # gRPC is HTTP/2, and a client that does not say so is refused after the handshake.
    context.set_alpn_protocols(["h2"])
    load_pair(context, *(read_pair(cert_path) if cert_path else self_signed(now)))
    if client_ca:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"--tls-client-ca-file: cannot load {os.fspath(client_ca)}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class ServerTlsFactory:
    """Makes the codec of each connection; implements `TlsFactory`.

    `reload` makes the whole context anew, rather than loading another certificate into the old one: that would go on
    serving the old certificate beside it when the kind of key has changed. Open connections keep what they have.
    """

    def __init__(self, make_context: Callable[[], ssl.SSLContext]) -> None:
        self._make_context = make_context
        self._context = make_context()

    def __call__(self) -> TlsCodec:
        """The codec of one connection."""
        return ServerTls(self._context)

    def reload(self) -> None:
        """Use what the files hold now. ValueError: they are bad, and what was there stays."""
        self._context = self._make_context()


class ServerTls:
    """The server's side of one connection. Implements `TlsCodec`."""

    __slots__ = ("_closed", "_incoming", "_object", "_outgoing", "alpn", "handshake_done")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.handshake_done = False
        self.alpn: str | None = None
        self._closed = False

    def feed(self, ciphertext: bytes) -> list[bytes]:
        """Plaintext that became readable, in order. `TlsError` tells why the connection must end."""
        self._incoming.write(ciphertext)
        if not self.handshake_done and not self._handshake():
            return []
        plaintext = []
        incoming, read, pending = self._incoming, self._object.read, self._object.pending
        try:
            while piece := read(_RECORD):
                plaintext.append(piece)
                if not incoming.pending and not pending():
                    break  # spares the exception that would say so
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TlsError(f"TLS: {_reason(error)}") from error
        return plaintext

    def seal(self, plaintext: bytes) -> None:
        """Encrypt, in as few records as it takes; `take` gives the result. Ignored after `close`."""
        if self._closed:
            return
        try:
            done = 0
            while done < len(plaintext):
                done += self._object.write(memoryview(plaintext)[done:] if done else plaintext)
        except ssl.SSLError as error:
            raise TlsError(f"TLS: {_reason(error)}") from error

    def take(self) -> bytes:
        """Ciphertext to write."""
        return self._outgoing.read()

    def close(self) -> None:
        """Say goodbye: `take` holds close_notify. The peer's is not waited for."""
        if self.handshake_done and not self._closed:
            # It wants to wait for the peer's close_notify, or the connection is broken: ours is written, if it can be.
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()
        self._closed = True

    def _handshake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsError(f"TLS handshake: {_reason(error)}") from error
        self.handshake_done = True
        self.alpn = self._object.selected_alpn_protocol()
        if self.alpn != "h2":
            raise TlsError("TLS handshake: the peer did not offer h2 (ALPN); gRPC needs HTTP/2")
        return True


def _reason(error: ssl.SSLError) -> str:
    verify = getattr(error, "verify_message", "")
    reason = (error.reason or str(error)).replace("_", " ").lower()
    return f"{reason}: {verify}" if verify else reason
