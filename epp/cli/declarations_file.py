"""`--declarations-file`: objectives and rewrites where there is no Kubernetes, as the same manifests.

YAML documents of the kinds InferenceObjective and InferenceModelRewrite; a `poolRef` is not asked for and not looked
at, for there is one pool. The file is looked at every second. One that cannot be read leaves the last good state in
use; at the start it is an error. A document of another kind is one, too, and so are fields that nobody knows, values
that the CRDs would refuse, and a name that is there twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from epp.api.errors import ConfigError
from epp.cli.declarations_schema import ModelRewrite, Objective
from epp.datalayer.bounded_yaml import BoundedLoader
from epp.director.objectives import ObjectiveTable
from epp.director.rewrites import Rewrite, RewriteTable
from epp.kubernetes.declarations import InferenceModelRewrite, InferenceObjective, priorities
from epp.telemetry.metrics import Registry

log = logging.getLogger("epp")

LOOK_SECONDS = 1.0
MAX_BYTES = 4 << 20


class DeclarationsFile:
    """Keeps both tables equal to a file between `start` and `stop`."""

    def __init__(self, path: Path, objectives: ObjectiveTable, rewrites: RewriteTable, registry: Registry) -> None:
        self._path = path
        self._objectives = objectives
        self._rewrites = rewrites
        self._registry = registry
        self._errors = registry.counter(
            "declarations_errors_total", "Times that the declarations file changed into one that cannot be used."
        ).labels()
        self._problem = ""
        self._seen: tuple[int, int, int] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """`ConfigError`: the file cannot be used."""
        try:
            self._seen = self._signature()
            self._load()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._path}: {error}",
                path="--declarations-file",
                fix="give InferenceObjective and InferenceModelRewrite manifests",
            ) from error
        self._task = asyncio.create_task(self._watch(), name="declarations-file")

    async def stop(self) -> None:
        """The tables stay as they are."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                signature = self._signature()
                if signature != self._seen:
                    self._seen = signature
                    self._load()
                    self._problem = ""
                    log.info("%s: loaded again", self._path)
            except (OSError, ValueError) as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    self._errors.inc()
                    log.warning("%s is not used, the last good state stays: %s", self._path, error)

    def _signature(self) -> tuple[int, int, int]:
        state = self._path.stat()
        return state.st_mtime_ns, state.st_size, state.st_ino

    def _load(self) -> None:
        content = self._path.read_bytes()
        if len(content) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        objectives, rewrites = parse(content)
        self._objectives.replace(priorities(objectives))
        self._registry.pin_models(name for rewrite in rewrites for name in rewrite.model_names())
        self._rewrites.replace(rewrites)


def parse(content: bytes) -> tuple[list[InferenceObjective], list[Rewrite]]:
    """Both kinds. ValueError says which document is wrong, and how."""
    objectives: list[InferenceObjective] = []
    rewrites: list[Rewrite] = []
    named: set[tuple[str, str]] = set()
    try:
        documents: Iterable[Any] = list(yaml.load_all(content, Loader=BoundedLoader))  # a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None
    for number, document in enumerate(document for document in documents if document is not None):
        kind = document.get("kind") if isinstance(document, dict) else None
        try:
            if kind == "InferenceObjective":
                name = msgspec.convert(document, Objective).metadata.name
                objectives.append(msgspec.convert(document, InferenceObjective))
            elif kind == "InferenceModelRewrite":
                name = msgspec.convert(document, ModelRewrite).metadata.name
                created = f"{number:06d}"  # the order in the file decides where age would
                rewrite = msgspec.convert(document, InferenceModelRewrite).rewrite
                rewrites.append(msgspec.structs.replace(rewrite, created=created))
            else:
                told = (
                    repr(kind[:80]) if isinstance(kind, str) else "None" if kind is None else f"a {type(kind).__name__}"
                )
                raise ValueError(f"kind is {told}: InferenceObjective and InferenceModelRewrite are known")
            if (kind, name) in named:
                raise ValueError(f"{kind} {name} is there twice")
            named.add((kind, name))
        except ValueError as error:
            raise ValueError(f"document {number + 1}: {error}") from None
    return objectives, rewrites
