"""Where the server's certificate comes from: made on the spot, or read from files and read again when they change."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import ssl
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

CERTIFICATE = "tls.crt"
KEY = "tls.key"
"""File names of a Kubernetes TLS secret."""

POLL = 1.0
"""Seconds between two looks at the files. Kubernetes takes about a minute to bring a changed secret to a pod."""

DEBOUNCE = 0.25
"""Seconds the files must be still before they are read: the two may be written one after the other."""

_LIFETIME = timedelta(days=3650)
_NAMES = ("localhost", "epp")


def self_signed(now: datetime, names: tuple[str, ...] = _NAMES) -> tuple[bytes, bytes]:
    """A certificate and its key as PEM: ECDSA P-256, valid for ten years from an hour before `now`.

    P-256 because its signature is some 20 times cheaper than RSA 2048's, for the server as for the process start. The
    gateway does not verify it: it encrypts, it does not identify.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, names[0])])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def read_pair(directory: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """`tls.crt` and `tls.key` of a directory, as PEM. ValueError names what is wrong with which file."""
    pair = []
    for path in (Path(directory, CERTIFICATE), Path(directory, KEY)):
        try:
            pair.append(path.read_bytes())
        except OSError as error:
            raise ValueError(
                f"--cert-path: cannot read {path} ({error.strerror}); the directory must hold {CERTIFICATE} and {KEY}"
            ) from error
    return pair[0], pair[1]


def load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load PEM bytes into a context, which wants files: they exist for a moment, readable by us alone.

    ValueError: the two are no certificate and key, or do not belong together.
    """
    with tempfile.TemporaryDirectory(prefix="epp-tls-") as folder:
        paths = []
        for name, content in ((CERTIFICATE, certificate), (KEY, key)):
            path = Path(folder, name)
            path.touch(mode=0o600)
            path.write_bytes(content)
            paths.append(str(path))
        try:
            context.load_cert_chain(*paths)
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            raise ValueError(
                f"--cert-path: {CERTIFICATE} and {KEY} are not a certificate and its key: {reason} "
                "(both must be PEM, and made for each other)"
            ) from error


class CertificateReloader:
    """Reads the certificate again whenever its files change, while connections go on.

    `load` is called with nothing and raises ValueError for a bad pair; the old one then stays in use. New connections
    get the new certificate, open ones keep theirs. `reloaded(ok)` is for a metric.

    Kubernetes replaces a secret by swapping the symbolic link `..data`, so what is compared is what the links lead to.
    Looking at two files once a second costs less than a watch that must survive such swaps.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        load: Callable[[], None],
        log: logging.Logger,
        *,
        reloaded: Callable[[bool], None] | None = None,
        poll: float = POLL,
        debounce: float = DEBOUNCE,
    ) -> None:
        self._paths = (Path(directory, CERTIFICATE), Path(directory, KEY))
        self._load = load
        self._log = log
        self._reloaded = reloaded
        self._poll = poll
        self._debounce = debounce
        self._seen = self._state()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch(), name="certificate-reload")

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def reload(self) -> bool:
        """Load now; False when the pair is bad and the old one stays."""
        try:
            self._load()
        except ValueError as error:
            self._log.error("the new certificate is not used, the old one stays: %s", error)
            ok = False
        else:
            self._log.info("certificate reloaded from %s", self._paths[0])
            ok = True
        if self._reloaded is not None:
            self._reloaded(ok)
        return ok

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll)
            state = self._state()
            if state == self._seen:
                continue
            while True:
                await asyncio.sleep(self._debounce)
                still = self._state()
                if still == state:
                    break
                state = still
            self._seen = state
            self.reload()

    def _state(self) -> tuple[object, ...]:
        return tuple(_identity(path) for path in self._paths)


def _identity(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
