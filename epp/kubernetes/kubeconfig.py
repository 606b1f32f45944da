"""Where the API server is and how to sign in: the pod's service account, or a kubeconfig.

Everything that a kubeconfig can say about the current context's cluster and user is done, or refused with its name:
nothing is left out in silence. Not done: `auth-provider` (an `exec` command does the same) and impersonation (`as`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from yarl import URL

from epp.api.errors import ConfigError
from epp.kubernetes.authorities import Authorities, checked
from epp.kubernetes.credentials import (
    Certificate,
    CommandCredentials,
    Credentials,
    FileCredentials,
    Identity,
)
from epp.kubernetes.proxy import from_environment

_EXEC_VERSIONS = tuple(f"client.authentication.k8s.io/{version}" for version in ("v1", "v1beta1"))
_EXEC_EXTENSION = "client.authentication.k8s.io/exec"


@dataclass(frozen=True, slots=True)
class Access:
    """How an API server is reached. `server_name`: what its certificate is checked against, "" the host of the URL.
    `proxy`: URL of an HTTP proxy, "" none."""

    server: str
    credentials: Credentials
    authorities: Authorities = field(default_factory=Authorities)
    verify: bool = True
    server_name: str = ""
    proxy: str = ""
    compressed: bool = True


class _Cluster(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    server: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    proxy_url: str = ""
    disable_compression: bool = False
    extensions: Any = None


class _Variable(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    value: str


class _Exec(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    command: str
    api_version: str
    args: list[str] | None = None
    env: list[_Variable] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = "IfAvailable"


class _User(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    password: str = ""
    exec: _Exec | None = None
    auth_provider: Any = None
    as_: str = msgspec.field(default="", name="as")
    as_uid: str = ""
    as_groups: list[str] | None = None
    as_user_extra: Any = None
    extensions: Any = None


class _Context(msgspec.Struct, forbid_unknown_fields=True):
    cluster: str
    user: str = ""
    namespace: str = ""
    extensions: Any = None


PartT = TypeVar("PartT")


@dataclass(frozen=True, slots=True)
class _Part:
    """An entry of a kubeconfig. `where` names it in messages; relative paths begin in the folder of its file."""

    content: Any
    where: str
    folder: Path

    def read(self, kind: type[PartT]) -> PartT:
        if isinstance(self.content, dict):
            told = {key: value for key, value in self.content.items() if value is not None}
            try:
                return msgspec.convert(told, kind)
            except msgspec.ValidationError as error:
                raise self.wrong(f"{error}") from None
        raise self.wrong("it must be a mapping")

    def wrong(self, problem: str, fix: str = "") -> ConfigError:
        return ConfigError(problem, path=self.where, fix=fix)

    def path(self, text: str) -> Path:
        return self.folder / Path(text).expanduser()

    def file(self, text: str) -> bytes:
        try:
            return self.path(text).read_bytes()
        except OSError as error:
            raise self.wrong(f"{error}") from error

    def data(self, text: str) -> bytes:
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except binascii.Error as error:
            raise self.wrong(f"a field that ends in -data is no base64: {error}") from None


def from_kubeconfig(paths: str, environment: Mapping[str, str], wall_clock: Callable[[], datetime]) -> Access:
    """The current context of one kubeconfig or of several, separated as in `$PATH`. `ConfigError`: what is wrong."""
    entries, current = _entries(paths)
    if not current:
        raise ConfigError("no current-context", path=paths, fix="kubectl config use-context NAME")
    context = _entry(entries, "context", current, paths).read(_Context)
    part = _entry(entries, "cluster", context.cluster, paths)
    cluster = part.read(_Cluster)
    authorities = _authorities(part, cluster)
    if not cluster.server.startswith(("https://", "http://")):
        raise part.wrong(f"server is {cluster.server!r}", "an URL that begins with https:// or http://")
    if authorities.pem() and cluster.insecure_skip_tls_verify:
        raise part.wrong("insecure-skip-tls-verify and an authority to verify with", "leave one of them out")
    credentials: Credentials = FileCredentials()
    if context.user:
        signs_in = _entry(entries, "user", context.user, paths)
        told = _cluster_info(cluster, authorities.pem())
        credentials = _credentials(signs_in, signs_in.read(_User), told, environment, wall_clock)
    server = cluster.server.rstrip("/")
    return Access(
        server=server,
        credentials=credentials,
        authorities=authorities,
        verify=not cluster.insecure_skip_tls_verify,
        server_name=cluster.tls_server_name,
        proxy=_usable_proxy(cluster.proxy_url or from_environment(server, environment), part.where),
        compressed=not cluster.disable_compression,
    )


def from_service_account(environment: Mapping[str, str]) -> Access:
    """In a pod. `ConfigError`: the kubelet has mounted no service account."""
    from kubernetes.aio import client
    from kubernetes.aio.config import ConfigException, incluster_config

    token, authority = incluster_config.SERVICE_TOKEN_FILENAME, incluster_config.SERVICE_CERT_FILENAME
    found = client.Configuration()
    loader = incluster_config.InClusterConfigLoader(  # type: ignore[no-untyped-call]
        token, authority, try_refresh_token=False, environ=environment
    )
    try:
        loader.load_and_set(found)  # type: ignore[no-untyped-call]
        authorities = Authorities(checked(Path(authority).read_bytes()), Path(authority))
    except (ConfigException, OSError, ValueError) as error:
        raise ConfigError(
            f"no Kubernetes API server is known: {error}",
            path="service account",
            fix="automountServiceAccountToken: true, or set KUBECONFIG",
        ) from error
    return Access(
        server=found.host,
        credentials=FileCredentials(token=Path(token)),
        authorities=authorities,
        proxy=_usable_proxy(from_environment(found.host, environment), "environment"),
    )


def _entries(paths: str) -> tuple[dict[tuple[str, str], _Part], str]:
    """All entries by kind and name, and the current context; of several files the first one that says it counts."""
    from kubernetes.aio.config import ConfigException
    from kubernetes.aio.config.kube_config import KubeConfigMerger

    try:
        merged = KubeConfigMerger(paths)  # type: ignore[no-untyped-call]
        if merged.config is None:
            raise ConfigError(
                f"no Kubernetes API server is known: {paths} does not exist",
                path="--pool-name",
                fix="run in a pod with a service account, set KUBECONFIG, or list endpoints with `file-discovery`",
            )
        found = {
            (kind, node.value["name"]): _Part(
                node.value.get(kind), f"{node.path}: {kind} {node.value['name']}", Path(node.path).parent
            )
            for kind in ("cluster", "context", "user")
            for node in merged.config.value[f"{kind}s"]
        }
        current = [file["current-context"] for file in merged.config_files.values() if file.get("current-context")]
    except (AttributeError, KeyError, TypeError, OSError, yaml.YAMLError, ConfigException) as error:
        raise ConfigError(f"this is no kubeconfig: {type(error).__name__}: {error}", path=paths) from error
    return found, current[0] if current else ""


def _entry(entries: Mapping[tuple[str, str], _Part], kind: str, name: str, paths: str) -> _Part:
    part = entries.get((kind, name))
    if part is None:
        there = ", ".join(sorted(other for of, other in entries if of == kind)) or "none"
        raise ConfigError(f"there is no {kind} {name}", path=paths, fix=f"one of: {there}")
    return part


def _authorities(part: _Part, cluster: _Cluster) -> Authorities:
    file: Path | None = None
    if cluster.certificate_authority_data:
        pem = part.data(cluster.certificate_authority_data)
    elif cluster.certificate_authority:
        pem, file = part.file(cluster.certificate_authority), part.path(cluster.certificate_authority)
    else:
        return Authorities()
    try:
        return Authorities(checked(pem), file)
    except ValueError as error:
        raise part.wrong(f"certificate-authority: {error}", "PEM certificates") from None


def _credentials(
    part: _Part,
    user: _User,
    cluster: Mapping[str, Any],
    environment: Mapping[str, str],
    wall_clock: Callable[[], datetime],
) -> Credentials:
    if user.auth_provider is not None:
        raise part.wrong("auth-provider is not supported", "an `exec` command that gives a token, such as kubelogin")
    if user.as_ or user.as_uid or user.as_groups or user.as_user_extra:
        raise part.wrong("impersonation (as, as-uid, as-groups, as-user-extra) is not supported", "a user of its own")
    certificate, files = _certificate(part, user)
    fixed = ""
    if user.token:
        fixed = f"Bearer {user.token.strip()}"
    elif user.username:
        fixed = "Basic " + base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
    if user.exec is None:
        token = part.path(user.token_file) if user.token_file else None
        return FileCredentials(Identity(fixed, certificate), token=token, certificate=files)
    if fixed or user.token_file or certificate or files:
        raise part.wrong("exec and another way to sign in", "leave one of them out")
    return _command(part, user.exec, cluster, environment, wall_clock)


def _certificate(part: _Part, user: _User) -> tuple[Certificate | None, tuple[Path, Path] | None]:
    """A certificate as it stands there, or its files: they may be replaced. Data counts before files."""
    has = bool(user.client_certificate or user.client_certificate_data)
    if has != bool(user.client_key or user.client_key_data):
        raise part.wrong("a client certificate needs its key, and the key its certificate")
    if not has:
        return None, None
    if not (user.client_certificate_data or user.client_key_data):
        return None, (part.path(user.client_certificate), part.path(user.client_key))
    chain, key = (
        part.data(data) if data else part.file(file)
        for data, file in (
            (user.client_certificate_data, user.client_certificate),
            (user.client_key_data, user.client_key),
        )
    )
    return Certificate(chain, key), None


def _command(
    part: _Part,
    command: _Exec,
    cluster: Mapping[str, Any],
    environment: Mapping[str, str],
    wall_clock: Callable[[], datetime],
) -> CommandCredentials:
    if command.api_version not in _EXEC_VERSIONS:
        raise part.wrong(f"exec.apiVersion is {command.api_version!r}", " or ".join(_EXEC_VERSIONS))
    if command.interactive_mode not in ("Never", "IfAvailable"):
        raise part.wrong(
            f"exec.interactiveMode is {command.interactive_mode!r}: nobody is there to answer", "Never or IfAvailable"
        )
    # As a shell does: with a slash it is a path, without one it is looked for in $PATH.
    name = str(part.path(command.command)) if "/" in command.command else command.command
    return CommandCredentials(
        [name, *(command.args or ())],
        command.api_version,
        environment={**environment, **{variable.name: variable.value for variable in command.env or ()}},
        wall_clock=wall_clock,
        cluster=cluster if command.provide_cluster_info else None,
        hint=command.install_hint,
    )


def _cluster_info(cluster: _Cluster, authorities: str) -> dict[str, Any]:
    """`spec.cluster` of an ExecCredential, for a command that wants to know whom it signs in to."""
    told: dict[str, Any] = {"server": cluster.server}
    if cluster.tls_server_name:
        told["tls-server-name"] = cluster.tls_server_name
    if cluster.insecure_skip_tls_verify:
        told["insecure-skip-tls-verify"] = True
    if authorities:
        told["certificate-authority-data"] = base64.b64encode(authorities.encode()).decode()
    if cluster.proxy_url:
        told["proxy-url"] = cluster.proxy_url
    for extension in cluster.extensions or ():
        if isinstance(extension, dict) and extension.get("name") == _EXEC_EXTENSION:
            told["config"] = extension.get("extension")
    return told


def _usable_proxy(proxy: str, where: str) -> str:
    if not proxy:
        return ""
    try:
        usable = URL(proxy).scheme == "http" and bool(URL(proxy).host)
    except ValueError:
        usable = False
    if not usable:
        # TLS within TLS is more than the event loop can do, and SOCKS is another protocol.
        raise ConfigError(
            f"the proxy {proxy!r} cannot be used", path=where, fix="http://HOST:PORT, or NO_PROXY for the API server"
        )
    return proxy
