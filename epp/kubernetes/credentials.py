"""Who we are to the API server: a token, a certificate, files with either that are replaced, a command that makes them.

Tokens of service accounts live for an hour, and the kubelet puts a new one into the file long before: files are read
for each call (a few small reads every few seconds). A command (`exec` of a kubeconfig) is asked again when what it gave
expires, or when the server refuses it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

log = logging.getLogger(__name__)

COMMAND_SECONDS = 60.0
"""For a command that signs in: it may ask a cloud."""


class Certificate(NamedTuple):
    """A client certificate with its chain, and its key, as PEM."""

    chain: bytes
    key: bytes

    def load_into(self, context: ssl.SSLContext) -> None:
        """OpenSSL reads certificates from files only; theirs live as long as this call. `OSError`: they are no pair."""
        with tempfile.TemporaryDirectory(prefix="epp-") as folder:
            chain, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
            chain.write_bytes(self.chain)
            key.touch(mode=0o600)
            key.write_bytes(self.key)
            context.load_cert_chain(chain, key)


class Identity(NamedTuple):
    """What a call shows: the value of the `Authorization` header ("" none), and a certificate."""

    authorization: str = ""
    certificate: Certificate | None = None


class Credentials(Protocol):
    """Gives the identity for each call. `OSError`, `ValueError`: there is none now."""

    async def identity(self) -> Identity:
        """What to show now."""

    def refused(self) -> None:
        """The server did not know the last one (401)."""


class FileCredentials:
    """What does not change, and files that are replaced. Implements `Credentials`.

    A token file that cannot be read, or is empty (somebody is just writing it), leaves the last token in use until
    the server refuses it.
    """

    def __init__(
        self,
        identity: Identity = Identity(),  # noqa: B008 - a tuple
        *,
        token: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._fixed = identity
        self._token = token
        self._certificate = certificate
        self._last = ""
        self._complained = False

    async def identity(self) -> Identity:
        """With what the files say now."""
        certificate = self._fixed.certificate
        if self._certificate is not None:
            certificate = Certificate(*(path.read_bytes() for path in self._certificate))
        if self._token is None:
            return Identity(self._fixed.authorization, certificate)
        try:
            self._last = _read_token(self._token)
        except (OSError, ValueError) as error:
            if not self._last:
                raise
            if not self._complained:
                log.warning("the last token stays in use: %s", error)
            self._complained = True
        else:
            self._complained = False
        return Identity(f"Bearer {self._last}", certificate)

    def refused(self) -> None:
        """Only what the file says from now on counts."""
        self._last = ""


def _read_token(path: Path) -> str:
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"the token file {path} is empty")
    return token


class _Status(msgspec.Struct, rename="camel"):
    token: str = ""
    expiration_timestamp: datetime | None = None
    client_certificate_data: str = ""
    client_key_data: str = ""


class _ExecCredential(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    status: _Status | None = None


class CommandCredentials:
    """A command that prints an ExecCredential (client.authentication.k8s.io). Implements `Credentials`.

    `cluster`: told to the command in `KUBERNETES_EXEC_INFO`, None: nothing. `hint`: what to do when the command is not
    there, for the error message.
    """

    def __init__(
        self,
        command: Sequence[str],
        api_version: str,
        *,
        environment: Mapping[str, str],
        wall_clock: Callable[[], datetime],
        cluster: Mapping[str, Any] | None = None,
        hint: str = "",
    ) -> None:
        self._command = tuple(command)
        self._api_version = api_version
        info: dict[str, Any] = {"apiVersion": api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
        if cluster is not None:
            info["spec"]["cluster"] = dict(cluster)
        self._environment = {**environment, "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
        self._wall_clock = wall_clock
        self._hint = hint
        self._kept: Identity | None = None
        self._expires: datetime | None = None
        self._one_at_a_time = asyncio.Lock()

    async def identity(self) -> Identity:
        """What the command gave, until it expires."""
        async with self._one_at_a_time:
            if self._kept is None or (self._expires is not None and self._wall_clock() >= self._expires):
                status = self._understood(await self._run())
                certificate = None
                if status.client_certificate_data and status.client_key_data:
                    certificate = Certificate(status.client_certificate_data.encode(), status.client_key_data.encode())
                self._kept = Identity(f"Bearer {status.token}" if status.token else "", certificate)
                expires = status.expiration_timestamp
                self._expires = expires.replace(tzinfo=UTC) if expires and expires.tzinfo is None else expires
            return self._kept

    def refused(self) -> None:
        """The command is asked again."""
        self._kept = None

    async def _run(self) -> bytes:
        name = self._command[0]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise OSError(f"{name} cannot be run: {error}{f'. {self._hint}' if self._hint else ''}") from error
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                said, complained = await process.communicate()
        except TimeoutError:
            raise OSError(f"{name} has not answered for {COMMAND_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise OSError(f"{name} ended with {process.returncode}: {complained[-500:].decode('utf-8', 'replace')}")
        return said

    def _understood(self, said: bytes) -> _Status:
        name = self._command[0]
        try:
            credential = msgspec.json.decode(said, type=_ExecCredential)
        except msgspec.DecodeError as error:
            raise ValueError(f"{name} printed no ExecCredential: {error}") from None
        if (credential.api_version, credential.kind) != (self._api_version, "ExecCredential"):
            raise ValueError(
                f"{name} printed {credential.kind} of {credential.api_version}, "
                f"an ExecCredential of {self._api_version} was asked for"
            )
        status = credential.status
        if status is None or not (status.token or status.client_certificate_data):
            raise ValueError(f"{name} gave neither a token nor a certificate")
        if bool(status.client_certificate_data) != bool(status.client_key_data):
            raise ValueError(f"{name} gave only one of clientCertificateData and clientKeyData")
        return status
