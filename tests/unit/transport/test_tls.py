"""TLS over memory buffers against OpenSSL's own client: handshakes, records, versions, suites, client certificates."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from epp.transport.call import TlsError
from epp.transport.certificates import load_pair, self_signed
from epp.transport.cipher_suites import openssl_names
from epp.transport.tls import ServerTls, ServerTlsFactory, server_context

NOW = datetime.now(UTC)


class Client:
    """A TLS client over memory buffers, wired to a `ServerTls` without sockets."""

    def __init__(self, server: ServerTls, context: ssl.SSLContext | None = None, **options: Any) -> None:
        context = context or client_context()
        self.server = server
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost", **options)
        self.received: list[bytes] = []

    def exchange(self, piece: int = 1 << 20) -> None:
        """Carry bytes both ways, `piece` at a time towards the server, until nothing moves."""
        while True:
            to_server = self.outgoing.read()
            for at in range(0, len(to_server), piece):
                self.received += self.server.feed(to_server[at : at + piece])
            to_client = self.server.take()
            self.incoming.write(to_client)
            if not to_server and not to_client:
                return

    def handshake(self, piece: int = 1 << 20) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.exchange(piece)
            else:
                self.exchange(piece)
                return

    def read(self) -> bytes:
        result = b""
        while True:
            try:
                result += self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                return result


def client_context(**options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(options.pop("alpn", ["h2"]))
    for name, value in options.items():
        setattr(context, name, value)
    return context


def server(**options: Any) -> ServerTls:
    return ServerTls(server_context(None, now=NOW, **options))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
def test_both_ways_however_the_bytes_are_cut(version: ssl.TLSVersion, piece: int) -> None:
    tls = server()
    client = Client(tls, client_context(minimum_version=version, maximum_version=version))
    assert not tls.handshake_done
    client.handshake(piece)
    assert (tls.handshake_done, tls.alpn) == (True, "h2")
    body = bytes(range(256)) * 300
    client.tls.write(b"hello")
    client.tls.write(body)
    tls.seal(b"answer")
    tls.seal(b"")
    tls.seal(body)
    client.exchange(piece)
    assert b"".join(client.received) == b"hello" + body
    assert client.read() == b"answer" + body


def test_many_records_are_decrypted_in_one_call() -> None:
    tls = server()
    client = Client(tls)
    client.handshake()
    for i in range(100):
        client.tls.write(b"%03d" % i)
    assert b"".join(tls.feed(client.outgoing.read())) == b"".join(b"%03d" % i for i in range(100))


def test_megabytes_in_one_write() -> None:
    tls = server()
    client = Client(tls)
    client.handshake()
    body = bytes(5_000_000)
    tls.seal(body)
    client.exchange()
    assert client.read() == body


def test_without_h2_the_peer_is_refused() -> None:
    for alpn in (["http/1.1"], []):
        with pytest.raises(TlsError, match="did not offer h2"):
            Client(server(), client_context(alpn=alpn) if alpn else _no_alpn()).handshake()


def _no_alpn() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_plaintext_and_garbage_are_refused() -> None:
    for garbage in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x00\x64" + bytes(100), bytes(50)):
        with pytest.raises(TlsError, match="TLS handshake"):
            server().feed(garbage)


def test_a_damaged_record_ends_the_connection() -> None:
    tls = server()
    client = Client(tls)
    client.handshake()
    client.tls.write(b"hello")
    record = bytearray(client.outgoing.read())
    record[-1] ^= 1
    with pytest.raises(TlsError, match=r"bad record mac|decryption failed"):
        tls.feed(bytes(record))
    assert tls.take()  # the alert that tells the peer


def test_minimum_version() -> None:
    old = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises((TlsError, ssl.SSLError)):
        Client(server(min_version="VersionTLS13"), old).handshake()
    client = Client(server(min_version="VersionTLS12"), old)
    client.handshake()
    assert client.tls.version() == "TLSv1.2"
    assert server_context(None, now=NOW).minimum_version is ssl.TLSVersion.TLSv1_2
    with pytest.raises(ValueError, match=r"'1\.2' is none of VersionTLS10, VersionTLS11"):
        server(min_version="1.2")


def test_cipher_suites() -> None:
    name = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
    client = Client(
        server(cipher_suites=f" {name}, TLS_AES_128_GCM_SHA256,"),
        client_context(maximum_version=ssl.TLSVersion.TLSv1_2),
    )
    client.handshake()
    assert client.tls.cipher()[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
    with pytest.raises(ValueError, match=r"unknown TLS_FANTASY; known are TLS_RSA_WITH_AES_128_CBC_SHA, "):
        openssl_names(f"{name},TLS_FANTASY")
    assert openssl_names("TLS_AES_256_GCM_SHA384") == "DEFAULT"


def test_a_suite_that_openssl_has_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        def __init__(self, protocol: int) -> None:
            pass

        def set_ciphers(self, names: str) -> None:
            raise ssl.SSLError("No cipher can be selected.")

    monkeypatch.setattr(ssl, "SSLContext", Without)
    with pytest.raises(ValueError, match="AES128-SHA is not offered by OpenSSL"):
        openssl_names("TLS_RSA_WITH_AES_128_CBC_SHA")


def test_client_certificates(make_client_pair: Callable[[], tuple[bytes, bytes]], tmp_path: Path) -> None:
    pair, ca = make_client_pair(), tmp_path / "ca.pem"
    ca.write_bytes(pair[0])
    known = client_context()
    load_pair(known, *pair)
    client = Client(server(client_ca=ca), known)
    client.handshake()
    client.tls.write(b"x")
    client.exchange()
    assert client.received == [b"x"]
    stranger = client_context()
    load_pair(stranger, *make_client_pair())
    for context, reason in (
        (stranger, "certificate verify failed"),
        (client_context(), "did not return a certificate"),
    ):
        refused = Client(server(client_ca=ca), context)
        with pytest.raises(TlsError, match=reason):
            refused.handshake()
        assert refused.server.take()  # the alert
    with pytest.raises(ValueError, match=r"--tls-client-ca-file: cannot load .*none\.pem"):
        server(client_ca=tmp_path / "none.pem")


def test_close_says_goodbye() -> None:
    tls = server()
    client = Client(tls)
    client.handshake()
    tls.seal(b"last")
    tls.close()
    tls.close()
    tls.seal(b"too late")
    client.incoming.write(tls.take())
    assert client.tls.read(100) == b"last"
    assert client.tls.read(100) == b""  # close_notify
    fresh = server()
    fresh.close()
    assert fresh.take() == b""


def test_the_peers_goodbye_is_no_error() -> None:
    tls = server()
    client = Client(tls)
    client.handshake()
    client.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    assert tls.feed(client.outgoing.read()) == [b"last"]
    assert tls.feed(b"") == []
    tls.seal(b"still answered")
    assert tls.take()


def test_writing_on_a_broken_connection_is_a_tls_error() -> None:
    with pytest.raises(TlsError):
        server().seal(b"before the handshake")


def peer_certificate(factory: Callable[[], Any]) -> bytes:
    client = Client(factory())
    client.handshake()
    certificate = client.tls.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def write(folder: Path, pair: tuple[bytes, bytes]) -> None:
    (folder / "tls.crt").write_bytes(pair[0])
    (folder / "tls.key").write_bytes(pair[1])


def test_reload_serves_the_new_certificate_and_keeps_open_connections(tmp_path: Path) -> None:
    first, second = self_signed(NOW), self_signed(NOW)
    write(tmp_path, first)
    factory = ServerTlsFactory(lambda: server_context(tmp_path, now=NOW))
    open_server = factory()
    assert isinstance(open_server, ServerTls)
    open_client = Client(open_server)
    open_client.handshake()
    assert peer_certificate(factory) == ssl.PEM_cert_to_DER_cert(first[0].decode())
    write(tmp_path, (second[0], first[1]))
    with pytest.raises(ValueError, match="not a certificate and its key"):
        factory.reload()
    assert peer_certificate(factory) == ssl.PEM_cert_to_DER_cert(first[0].decode())
    write(tmp_path, second)
    factory.reload()
    assert peer_certificate(factory) == ssl.PEM_cert_to_DER_cert(second[0].decode())
    open_client.tls.write(b"still here")
    open_client.exchange()
    assert open_client.received == [b"still here"]
