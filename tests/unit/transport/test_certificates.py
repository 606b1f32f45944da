"""Self-signed certificates, pairs from a directory, and reload under Kubernetes' way of replacing them."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from epp.transport.certificates import CertificateReloader, load_pair, read_pair, self_signed

NOW = datetime(2026, 5, 6, tzinfo=UTC)
LOG = logging.getLogger("test")


def write(folder: Path, pair: tuple[bytes, bytes]) -> None:
    (folder / "tls.crt").write_bytes(pair[0])
    (folder / "tls.key").write_bytes(pair[1])


def test_self_signed_is_p256_with_the_local_names() -> None:
    certificate = x509.load_pem_x509_certificate(self_signed(NOW, ("localhost", "epp.ns.svc"))[0])
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "epp.ns.svc"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=3650)


def test_pairs_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--cert-path: cannot read .*tls\.crt \(No such file.*tls\.crt and tls\.key"):
        read_pair(tmp_path)
    one, other = self_signed(NOW), self_signed(NOW)
    write(tmp_path, one)
    assert read_pair(tmp_path) == one
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for certificate, key in ((one[0], other[1]), (b"nonsense", one[1]), (one[0], b"")):
        with pytest.raises(ValueError, match="not a certificate and its key"):
            load_pair(context, certificate, key)
    load_pair(context, *one)


class Loads:
    """What the reloader is told to load; refuses when `bad`."""

    def __init__(self) -> None:
        self.bad = False
        self.count = 0
        self.results: list[bool] = []
        self.changed = asyncio.Event()

    def load(self) -> None:
        self.count += 1
        if self.bad:
            raise ValueError("a bad pair")

    def result(self, ok: bool) -> None:
        self.results.append(ok)
        self.changed.set()

    async def next(self) -> bool:
        await asyncio.wait_for(self.changed.wait(), 10)
        self.changed.clear()
        return self.results[-1]


def symlinked(folder: Path) -> Callable[[tuple[bytes, bytes]], None]:
    """A directory as the kubelet makes it; the function replaces its content in one step."""
    generation = 0

    def swap(pair: tuple[bytes, bytes]) -> None:
        nonlocal generation
        generation += 1
        target = folder / f"..{generation}"
        target.mkdir()
        write(target, pair)
        link = folder / "..data_tmp"
        link.symlink_to(target.name)
        os.replace(link, folder / "..data")

    swap(self_signed(NOW))
    for name in ("tls.crt", "tls.key"):
        (folder / name).symlink_to(Path("..data", name))
    return swap


async def test_a_swapped_secret_is_loaded_and_a_bad_one_keeps_the_old(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    swap = symlinked(tmp_path)
    loads = Loads()
    reloader = CertificateReloader(tmp_path, loads.load, LOG, reloaded=loads.result, poll=0.01, debounce=0.01)
    reloader.start()
    reloader.start()
    swap(self_signed(NOW))
    assert await loads.next() is True
    loads.bad = True
    swap((b"bad", b"bad"))
    assert await loads.next() is False
    loads.bad = False
    swap(self_signed(NOW))
    assert await loads.next() is True
    await reloader.close()
    await reloader.close()
    assert "the old one stays: a bad pair" in caplog.text
    assert "certificate reloaded from" in caplog.text
    assert loads.count == 3


async def test_files_are_read_when_they_are_still(tmp_path: Path) -> None:
    pair = self_signed(NOW)
    write(tmp_path, pair)
    loads = Loads()
    reloader = CertificateReloader(tmp_path, loads.load, LOG, reloaded=loads.result, poll=0.01, debounce=0.2)
    reloader.start()
    new = self_signed(NOW)
    (tmp_path / "tls.crt").write_bytes(new[0])
    await asyncio.sleep(0.05)
    (tmp_path / "tls.key").unlink()
    await asyncio.sleep(0.05)
    (tmp_path / "tls.key").write_bytes(new[1])
    assert await loads.next() is True
    assert loads.count == 1  # three changes, one load
    await reloader.close()


async def test_without_a_metric(tmp_path: Path) -> None:
    write(tmp_path, self_signed(NOW))
    loads = Loads()
    assert CertificateReloader(tmp_path, loads.load, LOG).reload() is True
    assert loads.results == []
