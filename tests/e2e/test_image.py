"""What the image runs: a wheel from the build context, in an environment of its own, on a filesystem that is read-only.

No container engine is needed: the wheel is built from what the COPY lines leave and installed by pip, its
dependencies are those of the tests, and the interpreter refuses to open anything for writing outside `$TMPDIR`.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
from pathlib import Path

import aiohttp
import pytest
import yaml
from packaging.requirements import Requirement

from epp.demo.picker import Served, endpoints_file, with_file_discovery
from epp.demo.ports import free_ports

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()

# Ways to change the filesystem, as the interpreter announces them (PEP 578). What cannot be made need not be removed.
READ_ONLY = """
import errno, os, sys
writable = tuple(os.environ["WRITABLE"].split(":"))
changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
events = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate"}

def refuse(event, arguments):
    if event == "open":
        if not isinstance(arguments[2], int) or not arguments[2] & changing:
            return
    elif event not in events:
        return
    path = arguments[0]
    if isinstance(path, (str, bytes)) and not os.path.abspath(os.fsdecode(path)).startswith((*writable, "/dev/")):
        raise OSError(errno.EROFS, "Read-only file system", path)

sys.addaudithook(refuse)
"""


def extras() -> set[str]:
    found = re.search(r"pip install .*'\.\[([^]]+)\]'", DOCKERFILE)
    assert found is not None
    return set(found[1].split(","))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, as /opt/epp is."""
    context = tmp_path_factory.mktemp("context")
    for sources, destination in re.findall(r"^COPY (?!--from)(.+) (\S+)$", DOCKERFILE, re.M):
        for source in sources.split():
            target = context / destination
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, target)
    wheels = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels), str(context)],
        check=True,
        timeout=100,
    )
    made = tmp_path_factory.mktemp("opt") / "epp"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True, timeout=60)
    (wheel,) = wheels.glob("*.whl")
    # Installed or not: with a PYTHONPATH, pip takes the checkout for it.
    install = [*pip, "--python", str(made / "bin/python"), "install", "--ignore-installed", *offline, str(wheel)]
    subprocess.run(install, check=True, timeout=100)
    site = next(made.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(READ_ONLY)
    return made


def test_the_extras_are_whole(image: Path) -> None:
    wheel = next(
        importlib.metadata.distributions(name="epp", path=list(map(str, image.glob("lib/python*/site-packages"))))
    )
    assert extras() <= set(wheel.metadata.get_all("Provides-Extra") or ())
    assert {"kubernetes", "otel", "redis", "tokenizers"} <= extras()
    for extra in extras():
        needed = [
            requirement
            for requirement in map(Requirement, wheel.requires or ())
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        ]
        assert needed
        for requirement in needed:
            assert requirement.specifier.contains(importlib.metadata.version(requirement.name))


def test_the_build_leaves_no_tools_behind() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    assert [stage.split()[0].partition(":")[0] for stage in stages] == ["python", "python"]
    assert all("-slim" in stage.split()[0] for stage in stages)
    assert stages[0].split()[0] == stages[1].split()[0]  # the environment's interpreter is where it was
    last = stages[-1]
    assert "RUN" not in re.sub(r"^#.*$", "", last, flags=re.M)
    assert re.search(r"^USER 65532:65532$", last, re.M)


async def test_it_serves_without_writing_anything(image: Path, tmp_path: Path) -> None:
    temporary = re.search(r"^ENV TMPDIR=(\S+)$", DOCKERFILE, re.M)
    assert temporary is not None
    read_only = tmp_path / "root"
    read_only.mkdir()
    (read_only / "endpoints.yaml").write_text(endpoints_file([Served("127.0.0.1", free_ports(1)[0])]))
    model = ROOT / "tests/data/tokenization"
    config = yaml.safe_dump(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": [
                {"type": "token-producer", "parameters": {"modelName": "m", "local": {"tokenizerPath": str(model)}}},
                {"type": "precise-prefix-cache-producer", "parameters": {}},
                {"type": "endpoint-notification-source"},
                {
                    "type": "prefix-cache-scorer",
                    "parameters": {"prefixMatchInfoProducerName": "precise-prefix-cache-producer"},
                },
            ],
            "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "prefix-cache-scorer"}]}],
            "dataLayer": {
                "sources": [
                    {
                        "pluginRef": "endpoint-notification-source",
                        "extractors": [{"pluginRef": "precise-prefix-cache-producer"}],
                    }
                ]
            },
        }
    )
    (read_only / "epp.yaml").write_text(with_file_discovery(config, read_only / "endpoints.yaml"))
    read_only.chmod(0o555)
    grpc, health, metrics = free_ports(3)
    process = await asyncio.create_subprocess_exec(
        *(str(image / "bin/epp"), "serve", "--config-file", str(read_only / "epp.yaml")),
        *("--grpc-port", str(grpc), "--grpc-health-port", str(health), "--metrics-port", str(metrics)),
        *("--metrics-endpoint-auth=false", "--drain-timeout=0s"),
        cwd=read_only,
        env={
            "PATH": f"{image}/bin:/usr/bin:/bin",
            "HOME": "/",
            "TMPDIR": temporary[1],
            "WRITABLE": temporary[1],
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_ports(1)[0]}",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with aiohttp.ClientSession() as client, asyncio.timeout(60):
            while True:
                assert process.returncode is None, (await process.communicate())[0].decode()
                try:
                    async with client.get(f"http://127.0.0.1:{metrics}/readyz") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
            # The certificate was made, and given to OpenSSL by way of $TMPDIR.
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            trusting.set_alpn_protocols(["h2"])
            _, writer = await asyncio.open_connection("127.0.0.1", grpc, ssl=trusting)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            writer.close()
            process.send_signal(signal.SIGTERM)
            told = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, told
    assert "Read-only" not in told
    assert "Traceback" not in told


async def test_the_filesystem_of_these_tests_is_read_only(image: Path, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(image / "bin/python"), "-c", "import epp; print(epp.__file__); open('x', 'w')"),
        cwd=tmp_path,
        env={"WRITABLE": "/dev/shm"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    assert said.decode().startswith(str(image))
    assert b"Read-only file system" in complained
