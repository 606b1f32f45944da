"""An API server over plain HTTP for whoever asks, and a connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from epp.kubernetes.connection import ApiConnection, connect
from tests.kubernetes.api_server import ApiServer


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer().serving() as made:
        yield made


@pytest.fixture
async def connection(server: ApiServer, tmp_path: Path) -> AsyncIterator[ApiConnection]:
    (tmp_path / "kubeconfig").write_text(server.kubeconfig())
    made = await connect({"KUBECONFIG": str(tmp_path / "kubeconfig")})
    yield made
    await made.close()
