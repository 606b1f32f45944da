"""Manifests under test: charts rendered by Helm's engine, objects checked against the schemas of their APIs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.37"
Manifest = dict[str, Any]


def render(chart: Path, values: Manifest, *, name: str, namespace: str) -> dict[str, str]:
    """The chart's templates by file name, as Helm would send them; its schema is asked about the values first."""
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values, name=name, namespace=namespace)
    return {Path(path).name: text for path, text in sorted(files.items())}


def objects(text: str) -> list[Manifest]:
    """The documents of a YAML text that are not empty."""
    return [document for document in yaml.safe_load_all(text) if document]


def validate(manifest: Manifest) -> None:
    """Raises jsonschema.ValidationError where the API server would refuse the object, unknown fields included."""
    schemas = _custom_resources()
    schema = schemas.get(f"{manifest['apiVersion']}/{manifest['kind']}")
    if schema is None:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    unknown = set(manifest) - {"apiVersion", "kind", "metadata", "spec"}
    if unknown:
        raise jsonschema.ValidationError(f"{manifest['kind']}: fields that do not exist: {sorted(unknown)}")
    _check("ConfigMap", {"metadata": manifest["metadata"]})
    jsonschema.Draft202012Validator({**schema, "$defs": schemas["$defs"]}).validate(manifest["spec"])
    for template in pod_templates(manifest):
        _check("PodTemplate", {"metadata": {"name": "template"}, "template": template})


def pod_templates(manifest: Manifest) -> Iterator[Manifest]:
    """The pod templates of a Deployment or a LeaderWorkerSet."""
    spec = manifest.get("spec", {})
    holders = [spec, spec.get("leaderWorkerTemplate", {})]
    for holder in holders:
        for key in ("template", "leaderTemplate", "workerTemplate"):
            if key in holder:
                yield holder[key]


@cache
def _custom_resources() -> Manifest:
    loaded: Manifest = yaml.safe_load((ROOT / "tests/data/manifests/crds.yaml").read_text())
    return loaded


def _check(kind: str, body: Manifest) -> None:
    kubernetes_validate.validate({"apiVersion": "v1", "kind": kind, **body}, KUBERNETES, strict=True)
