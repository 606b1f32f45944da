"""Every set of manifests that ships, rendered once: kustomizations by kubectl, charts by Helm's engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from epp.cli.flags import ServeOptions, parse_serve
from tests.kubernetes.manifests import ROOT, Manifest, objects, pod_templates, render, validate

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "charts/epp"
COMPONENTS = sorted(path.parent.name for path in (DEPLOY / "kustomize/components").glob("*/kustomization.yaml"))
OVERLAYS = sorted(path.parent.name for path in (DEPLOY / "kustomize/overlays").glob("*/kustomization.yaml"))
EXAMPLES = sorted(path.name.removesuffix(".values.yaml") for path in (CHART / "examples").glob("*.values.yaml"))
NAMES = ["base", *(f"overlay {name}" for name in OVERLAYS), *(f"chart {name}" for name in EXAMPLES)]


class Release(list[Manifest]):
    """All objects of one rendering."""

    def all(self, kind: str) -> list[Any]:
        return [manifest for manifest in self if manifest["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Any:
        """The only object of this kind whose name ends so."""
        found = [manifest for manifest in self.all(kind) if manifest["metadata"]["name"].endswith(name)]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} named *{name}"
        return found[0]

    @property
    def picker(self) -> Any:
        """The Deployment of the picker."""
        return self.one("Deployment", "-epp")

    @property
    def container(self) -> Any:
        """The picker's container."""
        return next(c for c in self.picker["spec"]["template"]["spec"]["containers"] if c["name"] == "epp")

    @property
    def arguments(self) -> list[str]:
        """The picker's arguments, as the kubelet hands them over."""
        values = {
            variable["name"]: variable.get("value", f"the-{variable['name'].lower()}")
            for variable in self.container["env"]
        }
        return [re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], m[0]), text) for text in self.container["args"]]

    @property
    def options(self) -> ServeOptions:
        """What the picker makes of them. Raises FlagError."""
        return parse_serve(self.arguments)[0]

    @property
    def configuration(self) -> str:
        """The text of the EndpointPickerConfig that --config-file names."""
        pod = self.picker["spec"]["template"]["spec"]
        folder, name = os.path.split(self.options.config_file)
        mount = next(m for m in self.container["volumeMounts"] if m["mountPath"] == folder)
        volume = next(v for v in pod["volumes"] if v["name"] == mount["name"])
        text: str = self.one("ConfigMap", volume["configMap"]["name"])["data"][name]
        return text

    def pods(self) -> list[Any]:
        """The pod templates of all workloads."""
        return [template for manifest in self for template in pod_templates(manifest)]


@cache
def kustomized(folder: Path) -> str:
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([str(kubectl), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def example(name: str) -> Mapping[str, str]:
    values = yaml.safe_load((CHART / f"examples/{name}.values.yaml").read_text())
    return render(CHART, values, name="llm", namespace="models")


def released(files: Mapping[str, str]) -> Release:
    return Release(m for name, text in files.items() if name.endswith(".yaml") for m in objects(text))


def load(name: str) -> Release:
    source, _, what = name.partition(" ")
    if source == "chart":
        return released(example(what))
    folder = DEPLOY / "kustomize" / ("base" if source == "base" else f"overlays/{what}")
    return Release(objects(kustomized(folder)))


@pytest.fixture(params=NAMES)
def release(request: pytest.FixtureRequest) -> Release:
    """Every rendering that ships."""
    return load(request.param)


@pytest.fixture
def named() -> Callable[[str], Release]:
    """One rendering by its name: `base`, `overlay pd`, `chart istio`."""
    return load


@pytest.fixture
def chart() -> Callable[..., Release]:
    """The chart with values of one's own."""

    def of(values: Manifest) -> Release:
        return released(render(CHART, values, name="llm", namespace="models"))

    return of


@pytest.fixture
def kustomize() -> Callable[[Path], Release]:
    """A kustomization of one's own."""
    return lambda folder: Release(objects(kustomized(folder)))


@cache
def own_schemas() -> Manifest:
    loaded: Manifest = yaml.safe_load((ROOT / "tests/data/deploy/crds.yaml").read_text())
    for path in (DEPLOY / "crds").glob("inference*.yaml"):
        crd = yaml.safe_load(path.read_text())["spec"]
        for version in crd["versions"]:
            schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
            loaded[f"{crd['group']}/{version['name']}/{crd['names']['kind']}"] = strict(schema)
    return loaded


def strict(schema: Any) -> Any:
    """As the API server has it with strict field validation: fields that the schema does not name are refused."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed["additionalProperties"] = False
    return closed


@pytest.fixture
def check() -> Callable[[Manifest], None]:
    """Raises jsonschema.ValidationError where an API server with all CRDs would refuse the object."""

    def valid(manifest: Manifest) -> None:
        schema = own_schemas().get(f"{manifest['apiVersion']}/{manifest['kind']}")
        if schema is None:
            validate(manifest)
            return
        metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
        validate(metadata)
        jsonschema.Draft202012Validator({**schema, "$defs": own_schemas()["$defs"]}).validate(manifest["spec"])

    return valid
