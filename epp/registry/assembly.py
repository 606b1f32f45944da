"""What comes out of a configuration: built plugins, each at its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from epp.api.plugin import (
    Admitter,
    DataSource,
    Discovery,
    EndpointExtractor,
    Extractor,
    ObjectExtractor,
    ObjectSource,
    Parser,
    Plugin,
    Producer,
    ProfileHandler,
    SaturationDetector,
)
from epp.config.schema import EndpointPickerConfig
from epp.scheduling.scheduler import ProfileAssembly


@dataclass(frozen=True, slots=True)
class Plugins:
    """All plugins.

    `by_name` has the order of the configuration. `producers` run in this order: each after those whose keys it reads.
    `start_order` covers everybody; discovery comes last, so that all others hear of every endpoint. Stop in reverse.
    """

    by_name: dict[str, Plugin[Any]]
    producers: list[Producer[Any]]
    start_order: list[Plugin[Any]]


@dataclass(frozen=True, slots=True)
class SourceAssembly:
    """A data source and the extractors that read what it fetched, in order."""

    source: DataSource[Any]
    extractors: tuple[Extractor[Any], ...]


@dataclass(frozen=True, slots=True)
class ObjectSourceAssembly:
    """Who hears of objects of the Kubernetes API."""

    source: ObjectSource[Any]
    extractors: tuple[ObjectExtractor[Any], ...]


@dataclass(frozen=True, slots=True)
class Assembly:
    """Everything a director, a collector and a server need; no defaults are left to decide.

    `config` is the effective configuration. `parsers` are in order of preference. `sources` are those
    that fetch; `endpoint_extractors` hear of endpoints wherever they are named. `discovery` None: endpoints come from
    Kubernetes. `warnings` are for the operator, each with its place in the file.
    """

    config: EndpointPickerConfig
    plugins: Plugins
    profiles: tuple[ProfileAssembly, ...]
    handler: ProfileHandler[Any]
    parsers: tuple[Parser[Any], ...]
    saturation_detector: SaturationDetector[Any]
    sources: tuple[SourceAssembly, ...]
    endpoint_extractors: tuple[EndpointExtractor[Any], ...]
    object_sources: tuple[ObjectSourceAssembly, ...]
    discovery: Discovery[Any] | None
    admitters: tuple[Admitter[Any], ...]
    warnings: tuple[str, ...]
