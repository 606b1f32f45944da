"""The chart, rendered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.kubernetes.manifests import ROOT, Manifest, objects, render

CHART = ROOT / "deploy/modelservice"


class Rendered(list[Manifest]):
    """All objects of one release."""

    def one(self, kind: str, name: str = "") -> Any:
        """The only object of this kind whose name ends so."""
        found = [m for m in self if m["kind"] == kind and m["metadata"]["name"].endswith(name)]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} named *{name}"
        return found[0]

    def server(self, role: str = "decode") -> Any:
        """The first container of a role."""
        kind = "LeaderWorkerSet" if any(m["kind"] == "LeaderWorkerSet" for m in self) else "Deployment"
        spec = self.one(kind, f"-{role}")["spec"]
        template = spec.get("template") or spec["leaderWorkerTemplate"]["workerTemplate"]
        return template["spec"]["containers"][0]

    def has(self, kind: str, name: str = "") -> bool:
        return any(m["kind"] == kind and m["metadata"]["name"].endswith(name) for m in self)


@pytest.fixture
def release() -> Callable[..., Rendered]:
    """Renders the chart with values, as release `qwen` in namespace `models`."""

    def of(**values: Any) -> Rendered:
        files = render(CHART, values, name="qwen", namespace="models")
        files.pop("NOTES.txt")
        return Rendered(manifest for text in files.values() for manifest in objects(text))

    return of
