"""What a kubeconfig can say: all of it is done over real TLS, or refused with its name."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import re
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import epp
from epp.kubernetes.clients import Clients
from epp.kubernetes.connection import ApiConnection, ApiError, connect
from epp.kubernetes.kubeconfig import from_kubeconfig
from epp.transport.certificates import self_signed
from tests.kubernetes.api_server import PODS, ApiServer, pod

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
PODS_PATH = PODS.format("ns")


class Signer:
    """An authority that signs clients, as a cluster's does."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "authority")])
        made = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate = self._pem(made)

    def client(self, name: str) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._pem(self._builder(subject, key)), private

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def _pem(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Cluster:
    """An API server over TLS whose certificate says `api.internal`, and kubeconfigs for it."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        certificate, key = self_signed(datetime.datetime.now(datetime.UTC), names or ("api.internal",))
        (folder / "ca.crt").write_bytes(certificate)
        (folder / "tls.key").write_bytes(key)
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # an API server does not ask for more either
        self.tls.load_cert_chain(folder / "ca.crt", folder / "tls.key")
        self.asked_for: list[str | None] = []
        self.tls.sni_callback = lambda _socket, name, _context: self.asked_for.append(name)
        self.server = ApiServer()
        self.url = ""

    def write(self, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **top: Any) -> str:
        """The path of a kubeconfig."""
        document = {
            "apiVersion": "v1",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "kind", "user": "me", "namespace": "ns"}}],
            "clusters": [
                {
                    "name": "kind",
                    "cluster": {"server": self.server.url, "certificate-authority": "ca.crt", **(cluster or {})},
                }
            ],
            "users": [{"name": "me", "user": user or {}}],
            **top,
        }
        path = self.folder / "kubeconfig"
        path.write_text(json.dumps(document))
        return str(path)

    @asynccontextmanager
    async def connected(
        self, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **environment: str
    ) -> AsyncIterator[ApiConnection]:
        connection = await connect({"KUBECONFIG": self.write(cluster, user), **environment})
        try:
            yield connection
        finally:
            await connection.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    made.server.put(PODS, pod("a", "10.0.0.1"))
    async with made.server.serving(made.tls):
        yield made


async def names(connection: ApiConnection) -> list[str]:
    return [item["metadata"]["name"] for item in json.loads(await connection.get(PODS_PATH, {}))["items"]]


def encoded(data: bytes) -> str:
    return base64.encodebytes(data).decode()  # with line breaks, as people paste it


async def test_the_certificate_is_checked_for_the_name_that_is_said(cluster: Cluster) -> None:
    async with cluster.connected({"tls-server-name": "api.internal"}) as connection:
        assert await names(connection) == ["a"]
        assert (await connection.call("GET", f"{PODS_PATH}/a"))[0] == 200
    assert set(cluster.asked_for) == {"api.internal"}
    async with cluster.connected({"tls-server-name": "another.internal"}) as connection:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await names(connection)


async def test_authorities_as_data(cluster: Cluster) -> None:
    data = {
        "certificate-authority": "missing",
        "certificate-authority-data": encoded((cluster.folder / "ca.crt").read_bytes()),
    }
    async with cluster.connected(data) as connection:
        assert await names(connection) == ["a"]
    other = encoded(self_signed(datetime.datetime.now(datetime.UTC))[0])
    async with cluster.connected({"certificate-authority-data": other}) as connection:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await names(connection)


async def test_a_file_of_authorities_may_be_replaced(cluster: Cluster) -> None:
    async with cluster.connected() as connection:
        assert await names(connection) == ["a"]
        certificate, key = self_signed(datetime.datetime.now(datetime.UTC))
        (cluster.folder / "other.crt").write_bytes(certificate)
        (cluster.folder / "other.key").write_bytes(key)
        cluster.tls.load_cert_chain(cluster.folder / "other.crt", cluster.folder / "other.key")
        await cluster.server.stop()
        await cluster.server.start()
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await names(connection)
        (cluster.folder / "ca.crt").write_bytes(certificate)
        assert await names(connection) == ["a"]


async def test_without_verification(cluster: Cluster) -> None:
    off = {"certificate-authority": None, "insecure-skip-tls-verify": True, "disable-compression": True}
    async with cluster.connected(off) as connection:
        assert await names(connection) == ["a"]


async def test_authorities_need_not_say_more_than_go_asks_for(cluster: Cluster) -> None:
    clients = Clients(from_kubeconfig(cluster.write(), {}, lambda: NOW))
    clients.believe(None)
    async with clients.newest() as client:
        context = client.rest_client.ssl_context
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


class ConnectProxy:
    """An HTTP proxy that leads every CONNECT, whoever is asked for, to one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked: list[bytes] = []
        self.authorization: list[bytes] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).splitlines()
        self.asked.append(head[0])
        self.authorization += [line for line in head if line.lower().startswith(b"proxy-authorization")]
        onward, back = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(self._copy(reader, back), self._copy(onward, writer))

    async def _copy(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                to.write(data)
                await to.drain()
        except ConnectionError:
            pass
        finally:
            to.close()


async def test_through_a_proxy(cluster: Cluster) -> None:
    proxy = ConnectProxy(cluster.server.port)
    async with proxy.serving() as port:
        there = {"server": "https://api.internal:6443", "proxy-url": f"http://me:secret@127.0.0.1:{port}"}
        async with cluster.connected(there) as connection:
            assert await names(connection) == ["a"]
            async with connection.watch(PODS_PATH, {"resourceVersion": "100"}, 5.0) as lines:
                assert json.loads(await anext(lines))["type"] == "ADDED"
        assert proxy.asked[0] == b"CONNECT api.internal:6443 HTTP/1.1"
        assert proxy.authorization[0] == b"Proxy-Authorization: Basic " + base64.b64encode(b"me:secret")
        before = len(proxy.asked)
        direct = {"HTTPS_PROXY": f"127.0.0.1:{port}"}
        async with cluster.connected({"server": "https://api.internal"}, **direct) as connection:
            assert await names(connection) == ["a"]
        assert proxy.asked[before] == b"CONNECT api.internal:443 HTTP/1.1"
        async with cluster.connected({"tls-server-name": "api.internal"}, **direct) as connection:
            assert await names(connection) == ["a"]  # this machine is asked without it
        assert len(proxy.asked) == before + 1


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "https://127.0.0.1:3128", "http://", "//"])
async def test_proxies_that_cannot_be_used(cluster: Cluster, proxy: str) -> None:
    with pytest.raises(epp.ConfigError, match=r"the proxy '.*' cannot be used") as error:
        await connect({"KUBECONFIG": cluster.write({"proxy-url": proxy})})
    assert "cluster kind" in str(error.value)


@pytest.mark.parametrize("kind", ["data", "files"])
async def test_a_client_certificate(cluster: Cluster, kind: str) -> None:
    signer = Signer()
    certificate, key = signer.client("picker")
    cluster.tls.verify_mode = ssl.CERT_REQUIRED
    cluster.tls.load_verify_locations(cadata=signer.certificate.decode())
    for name, data in (("me.crt", certificate), ("me.key", key)):
        (cluster.folder / name).write_bytes(data)
    files = {"client-certificate": "me.crt", "client-key": "me.key"}
    data = {"client-certificate-data": encoded(certificate), "client-key": "me.key"}
    host = {"tls-server-name": "api.internal"}
    async with cluster.connected(host, data if kind == "data" else files) as connection:
        assert await names(connection) == ["a"]
        cluster.tls.verify_mode = ssl.CERT_REQUIRED
        for name, renewed in zip(("me.crt", "me.key"), signer.client("picker"), strict=True):
            (cluster.folder / name).write_bytes(renewed)
        assert await names(connection) == ["a"]
        (cluster.folder / "me.key").write_bytes(key + b"\n")  # written before its certificate is
        if kind == "files":
            with pytest.raises(OSError, match=r"the credentials for .* cannot be read"):
                await names(connection)
    async with cluster.connected(host) as connection:
        with pytest.raises(aiohttp.ClientError):
            await names(connection)


async def test_a_token_file(cluster: Cluster) -> None:
    cluster.server.tokens = {"first": "picker"}
    (cluster.folder / "token").write_text("first\n")
    host = {"tls-server-name": "api.internal"}
    async with cluster.connected(host, {"tokenFile": "token", "token": "the file counts"}) as connection:
        assert await names(connection) == ["a"]
        cluster.server.tokens = {"second": "picker"}
        (cluster.folder / "token").write_text("second")
        assert await names(connection) == ["a"]
    with pytest.raises(epp.ConfigError, match=r"no credentials for https:.*No such file"):
        await connect({"KUBECONFIG": cluster.write(host, {"tokenFile": "missing"})})


async def test_a_token_and_a_password(cluster: Cluster) -> None:
    cluster.server.tokens = {"mine": "picker"}
    host = {"tls-server-name": "api.internal"}
    async with cluster.connected(host, {"token": "mine\n"}) as connection:
        assert await names(connection) == ["a"]
    access = from_kubeconfig(cluster.write(host, {"username": "me", "password": "secret"}), {}, lambda: NOW)
    assert (await access.credentials.identity()).authorization == "Basic bWU6c2VjcmV0"


class Command:
    """A command that signs in, with the answers that it gives one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "sign-in"
        self.path.write_text(
            f'#!/bin/sh\necho "$KUBERNETES_EXEC_INFO" >> {folder}/told\necho "$1 $REGION" >> {folder}/args\n'
            f"cat {folder}/answer\nif test -e {folder}/fail; then echo no session >&2; exit 3; fi\n"
        )
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def answers(self, version: str = "v1", **status: str) -> None:
        document = {
            "apiVersion": f"client.authentication.k8s.io/{version}",
            "kind": "ExecCredential",
            "status": status,
        }
        (self.folder / "answer").write_text(json.dumps(document))

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "told").read_text().splitlines()]

    def user(self, **more: Any) -> dict[str, Any]:
        said = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "./sign-in",
            "args": ["token"],
            "env": [{"name": "REGION", "value": "north"}],
        }
        return {"exec": {**said, **more}}


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


async def test_a_command_that_signs_in(cluster: Cluster, command: Command) -> None:
    cluster.server.tokens = {"first": "picker"}
    command.answers(token="first")
    host = {"tls-server-name": "api.internal"}
    environment = {"PATH": "/usr/bin:/bin"}
    async with cluster.connected(host, command.user(), **environment) as connection:
        assert await asyncio.gather(*(names(connection) for _ in range(5))) == [["a"]] * 5
        assert len(command.told) == 1
        assert command.told[-1]["spec"] == {"interactive": False}
        assert (cluster.folder / "args").read_text().splitlines()[0] == "token north"
        cluster.server.tokens = {"second": "picker"}
        command.answers(token="second")
        with pytest.raises(ApiError, match="401"):
            await names(connection)
        assert await names(connection) == ["a"]
        (cluster.folder / "fail").touch()
        cluster.server.tokens = {}
        with pytest.raises(ApiError, match="401"):
            await names(connection)
        with pytest.raises(OSError, match="sign-in ended with 3: no session"):
            await names(connection)


async def test_what_a_command_gave_expires(cluster: Cluster, command: Command) -> None:
    time = NOW
    path = cluster.write(user=command.user(provideClusterInfo=True))
    access = from_kubeconfig(path, {"PATH": "/usr/bin:/bin"}, lambda: time)
    command.answers(token="first", expirationTimestamp="2026-01-01T01:00:00Z")
    assert (await access.credentials.identity()).authorization == "Bearer first"
    command.answers(token="second", expirationTimestamp="2026-01-01T02:00:00")
    assert (await access.credentials.identity()).authorization == "Bearer first"
    time += datetime.timedelta(hours=1)
    assert (await access.credentials.identity()).authorization == "Bearer second"
    assert (await access.credentials.identity()).authorization == "Bearer second"
    told = command.told[0]["spec"]["cluster"]
    assert told["server"] == cluster.server.url
    assert base64.b64decode(told["certificate-authority-data"]) == (cluster.folder / "ca.crt").read_bytes()


async def test_a_command_may_give_a_certificate(cluster: Cluster, command: Command) -> None:
    signer = Signer()
    certificate, key = signer.client("picker")
    cluster.tls.verify_mode = ssl.CERT_REQUIRED
    cluster.tls.load_verify_locations(cadata=signer.certificate.decode())
    command.answers("v1beta1", clientCertificateData=certificate.decode(), clientKeyData=key.decode())
    user = command.user(apiVersion="client.authentication.k8s.io/v1beta1", provideClusterInfo=True)
    config = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}
    with_more = {
        "certificate-authority": None,
        "insecure-skip-tls-verify": True,
        "tls-server-name": "api.internal",
        "extensions": [{"name": "other"}, config],
    }
    async with cluster.connected(with_more, user, PATH="/usr/bin:/bin") as connection:
        assert await names(connection) == ["a"]
    assert command.told[0]["spec"]["cluster"] == {
        "server": cluster.server.url,
        "tls-server-name": "api.internal",
        "insecure-skip-tls-verify": True,
        "config": {"audience": "x"},
    }


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("no json", "printed no ExecCredential"),
        ('{"apiVersion": "v2", "kind": "ExecCredential"}', "printed ExecCredential of v2, an ExecCredential of client"),
        ('{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}', "gave neither a token nor a"),
        (
            '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",'
            ' "status": {"token": "x", "clientKeyData": "y"}}',
            "gave only one of",
        ),
    ],
)
async def test_answers_of_a_command_that_cannot_be_used(
    cluster: Cluster, command: Command, answer: str, problem: str
) -> None:
    (cluster.folder / "answer").write_text(answer)
    with pytest.raises(epp.ConfigError, match=f"no credentials for https:.*sign-in {problem}"):
        await connect({"KUBECONFIG": cluster.write(user=command.user()), "PATH": "/usr/bin:/bin"})


async def test_a_command_that_is_not_there_or_hangs(
    cluster: Cluster, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cluster.write(user=command.user(command="sign-me-in", installHint="See the handbook."))
    with pytest.raises(epp.ConfigError, match=r"sign-me-in cannot be run: .*\. See the handbook\."):
        await connect({"KUBECONFIG": path, "PATH": "/nowhere"})
    monkeypatch.setattr("epp.kubernetes.credentials.COMMAND_SECONDS", 0.2)
    command.path.write_text("#!/bin/sh\nexec sleep 100\n")
    with pytest.raises(epp.ConfigError, match=r"sign-in has not answered for 0\.2 s"):
        await connect({"KUBECONFIG": cluster.write(user=command.user()), "PATH": "/usr/bin:/bin"})


@pytest.mark.parametrize(
    ("cluster_says", "user", "problem"),
    [
        ({"server": "api.internal:6443"}, {}, "server is 'api.internal:6443'"),
        ({"server": 1}, {}, "Expected `str`, got `int`"),
        ({"certificate-authority": "missing"}, {}, "No such file"),
        ({"certificate-authority-data": "%"}, {}, "no base64"),
        ({"certificate-authority-data": encoded(b"no pem")}, {}, "certificate-authority: "),
        ({"insecure-skip-tls-verify": True}, {}, "insecure-skip-tls-verify and an authority"),
        ({"tls-servername": "typo"}, {}, "unknown field `tls-servername`"),
        ({}, {"auth-provider": {"name": "oidc"}}, "auth-provider is not supported"),
        ({}, {"as": "admin"}, "impersonation"),
        ({}, {"as-groups": ["admins"]}, "impersonation"),
        ({}, {"client-certificate": "me.crt"}, "needs its key"),
        ({}, {"client-certificate-data": encoded(b"x"), "client-key-data": encoded(b"y")}, "no credentials"),
        ({}, {"tokenfile": "typo"}, "unknown field `tokenfile`"),
        ({}, {"exec": {"command": "x"}}, "missing required field `apiVersion`"),
        ({}, {"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}}, "exec.apiVersion is"),
        (
            {},
            {
                "exec": {
                    "command": "x",
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "interactiveMode": "Always",
                }
            },
            "nobody is there to answer",
        ),
        (
            {},
            {"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1"}, "token": "y"},
            "exec and another way to sign in",
        ),
    ],
)
async def test_what_is_not_done_is_refused(
    cluster: Cluster, cluster_says: dict[str, Any], user: dict[str, Any], problem: str
) -> None:
    with pytest.raises(epp.ConfigError, match=problem):
        await connect({"KUBECONFIG": cluster.write(cluster_says, user)})


@pytest.mark.parametrize(
    ("top", "problem"),
    [
        ({"current-context": ""}, "no current-context"),
        ({"current-context": "there"}, "there is no context there.*one of: here"),
        ({"clusters": []}, "there is no cluster kind.*one of: none"),
        ({"users": [{"name": "you", "user": {}}]}, "there is no user me.*one of: you"),
        ({"users": [{"name": "me", "user": "x"}]}, "user me.*it must be a mapping"),
        ({"users": [{"user": {}}, {"user": {}}]}, "this is no kubeconfig"),
        ({"contexts": [{"name": "here", "context": {"user": "me"}}]}, "missing required field `cluster`"),
    ],
)
async def test_entries_that_are_missing(cluster: Cluster, top: dict[str, Any], problem: str) -> None:
    with pytest.raises(epp.ConfigError) as error:
        await connect({"KUBECONFIG": cluster.write(**top)})
    assert re.search(problem, str(error.value).replace("\n", " "))


@pytest.mark.parametrize("text", ["[]", "{", "just text", ""])
async def test_files_that_are_no_kubeconfig(tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(epp.ConfigError, match="this is no kubeconfig"):
        await connect({"KUBECONFIG": str(tmp_path / "kubeconfig")})


async def test_several_files_are_one(cluster: Cluster) -> None:
    first, second = cluster.folder / "first", cluster.folder / "second"
    second.mkdir()
    main = Path(cluster.write({"tls-server-name": "api.internal"}, {"tokenFile": "token"}))
    (cluster.folder / "token").write_text("ours")
    first.write_text(json.dumps({"current-context": "here"}))
    other = {"current-context": "there", "users": [{"name": "me", "user": {"token": "theirs"}}]}
    (second / "config").write_text(json.dumps(other))
    cluster.server.tokens = {"ours": "picker"}
    connection = await connect({"KUBECONFIG": f"{first}:{main}:{second / 'config'}:{second / 'missing'}"})
    assert await names(connection) == ["a"]
    await connection.close()


async def test_a_user_is_not_needed(cluster: Cluster) -> None:
    nobody = [{"name": "here", "context": {"cluster": "kind"}}]
    connection = await connect({"KUBECONFIG": cluster.write({"tls-server-name": "api.internal"}, contexts=nobody)})
    assert await names(connection) == ["a"]
    await connection.close()
