"""The base classes of plugins: what each hook gets, when it runs, what it may return.

Order for one request: `Parser.parse` -> `on_request` -> admission -> candidates -> `Producer.produce` ->
`Admitter.admit` -> per profile `Filter.filter`, `Scorer.score`, `Picker.pick` -> `on_picked` -> (the server answers)
`on_response_headers` -> `on_first_chunk` -> `on_response_end`. A class may have several roles by inheriting several
of these bases; any plugin may override any `on_*` hook.

An exception in a hook never takes the pool down: the plugin is skipped for that request, the failure is counted and
logged at most once a minute. Exceptions that refuse the request are `RequestError`s; they pass through.
All hooks run on the event loop: they must not block. A hook that has to wait is `async def` where it says so.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from epp.api.endpoints import BoolArray, Endpoint, Endpoints, EndpointTable, FloatArray, IntArray
from epp.api.keys import DataKey
from epp.api.request import InferenceRequest, InferenceResponse, Payload, Usage

if TYPE_CHECKING:
    import logging
    import ssl

Clock = Callable[[], float]
"""Seconds, monotonic. Handed in, so that tests and simulations own the time."""

Scores = NDArray[np.float64]
"""Shape `(n,)`, values in [0, 1]; NaN: this plugin has no data about that endpoint."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Parameters of a plugin: subclass as `class Params(epp.Params)`, one annotated field with default per parameter.

    Field names are snake_case in Python and camelCase in YAML. Use `Annotated[int, msgspec.Meta(ge=1, description=…)]`
    for bounds and documentation. Raise ValueError in `__post_init__` for what types cannot say.
    """


class NoParams(Params, frozen=True):
    """The parameters of a plugin that has none."""


ParamsT = TypeVar("ParamsT", bound=Params)


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What the picker hands to a plugin when it is built.

    `find(name)` returns another configured plugin by its name, building it first if need be (loops are an error).
    `metrics` is the registry of `epp.telemetry`; `table` holds all endpoints of the pool.
    """

    name: str
    clock: Clock
    rng: random.Random
    log: logging.Logger
    table: EndpointTable
    find: Callable[[str], Plugin[Any]]
    metrics: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Plugin(Generic[ParamsT]):
    """Base of all plugins. Subclass one of the role classes below.

    `type` is the name in the configuration file. `stability` is `alpha` (needs `--allow-experimental-plugins`),
    `beta`, `stable` or `deprecated`. `consumes` and `produces` are the data keys; override the properties when they
    depend on parameters. A required key that nobody produces gets its default producer, or start-up fails.
    """

    type: ClassVar[str] = ""
    stability: ClassVar[str] = "beta"
    Params: ClassVar[Any] = NoParams

    def __init__(self, params: ParamsT, context: PluginContext) -> None:
        self.params = params
        self.context = context
        self.name = context.name

    @property
    def consumes(self) -> Sequence[DataKey]:
        """Keys that must be produced before this plugin runs."""
        return ()

    @property
    def consumes_if_present(self) -> Sequence[DataKey]:
        """Keys this plugin reads when somebody produces them, and does without otherwise."""
        return ()

    @property
    def produces(self) -> Sequence[DataKey]:
        """Keys this plugin puts on requests or endpoints."""
        return ()

    async def start(self) -> None:
        """Open what the plugin needs (connections, watches). Called once, in the order of the data keys."""

    async def stop(self) -> None:
        """Close it. Called once, in reverse order, also when a later `start` failed."""

    def ready(self) -> bool:
        """False keeps the picker's readiness at NOT_SERVING (a warm-up, for example)."""
        return True

    def dump_state(self) -> Any:
        """A small JSON-able picture for `/debug/plugins/state`: bounded, no secrets, no prompts. None: nothing."""
        return None

    # Hooks on the way of one request; only those a subclass overrides are ever called.

    def on_request(self, request: InferenceRequest) -> None:
        """After parsing, before admission: may set attributes, the fairness id, or raise a `RequestError`."""

    def on_picked(self, request: InferenceRequest, result: SchedulingResult) -> None:
        """After the decision, before the reply: may add to `result.headers`. No short circuit: all plugins run."""

    def on_response_headers(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """The server's response headers are here: may fill `response.set_headers`."""

    def on_first_chunk(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """The first byte of the response body is here: the prompt has been processed."""

    def on_response_end(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """Exactly once for every request that was picked, however it ended (`response.cause`)."""


class Parser(Plugin[ParamsT]):
    """Understands one API: which model, how many tokens, which text, and the usage in the answer."""

    paths: ClassVar[tuple[str, ...]] = ()
    """Path suffixes in whole segments (`chat/completions`); none: the fallback for every path."""

    protocols: ClassVar[tuple[str, ...]] = ("http", "h2c")
    """Application protocols of the pool this parser serves; empty: any."""

    @abstractmethod
    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Payload:
        """The payload, or `BadRequest` naming the field or the offset that is wrong."""

    def usage(self, payload: Payload, body: bytes) -> Usage | None:
        """Usage in a complete JSON answer, or in the tail of a long one. None: it has none."""
        return None

    def stream_usage(self, payload: Payload, event: bytes) -> Usage | None:
        """Usage in one SSE data event (the JSON after `data: `). None: it has none."""
        return None

    def rewrite_model(self, payload: Payload, body: bytes, model: str) -> bytes:
        """The body with the model name replaced and every other byte as it was."""
        raise NotImplementedError(f"{self.type} cannot rewrite the model")


class Producer(Plugin[ParamsT]):
    """Computes data for a request before scheduling: tokens, prefix matches, predictions."""

    timeout: float = 0.4
    """Seconds an asynchronous `produce` may take; then the request goes on without its data (counted)."""

    @abstractmethod
    def produce(self, request: InferenceRequest, endpoints: Endpoints) -> Awaitable[None] | None:
        """Put the declared keys on `request.attributes`, `request.prompt` or, per candidate, `endpoints.set`."""


class Admitter(Plugin[ParamsT]):
    """May refuse a request once its candidates and data are known."""

    @abstractmethod
    def admit(self, request: InferenceRequest, endpoints: Endpoints) -> None:
        """Raise a `RequestError` to refuse."""


class Filter(Plugin[ParamsT]):
    """Keeps the endpoints that may serve the request."""

    @abstractmethod
    def filter(self, request: InferenceRequest, endpoints: Endpoints) -> BoolArray:
        """Mask of shape `(len(endpoints),)`; all False ends the profile with 429."""


class Scorer(Plugin[ParamsT]):
    """Says how good each candidate is."""

    @abstractmethod
    def score(self, request: InferenceRequest, endpoints: Endpoints) -> Scores:
        """Shape `(len(endpoints),)` in [0, 1]; NaN where there is no data (the mean of the others then stands in)."""


class EndpointScorer(Scorer[ParamsT], ABC):
    """For those who prefer to think one endpoint at a time; costs a Python call per candidate."""

    @abstractmethod
    def score_endpoint(self, request: InferenceRequest, endpoint: Endpoint) -> float:
        """Score of one endpoint in [0, 1], NaN for no data."""

    def score(self, request: InferenceRequest, endpoints: Endpoints) -> Scores:
        return np.array([self.score_endpoint(request, endpoint) for endpoint in endpoints], dtype=np.float64)


class Picker(Plugin[ParamsT]):
    """Chooses among the scored candidates."""

    @abstractmethod
    def pick(self, request: InferenceRequest, endpoints: Endpoints, scores: FloatArray) -> Sequence[int] | IntArray:
        """Positions in `endpoints`, best first. `scores` is the weighted sum, without NaN."""


class ProfileHandler(Plugin[ParamsT]):
    """Decides which profiles run, in which order, and which one answers."""

    @abstractmethod
    def next_profiles(
        self, request: InferenceRequest, profiles: Mapping[str, Any], done: Mapping[str, ProfileResult | None]
    ) -> Sequence[str]:
        """Names of the profiles to run now; asked again with their results until it returns none."""

    @abstractmethod
    def primary(self, request: InferenceRequest, done: Mapping[str, ProfileResult | None]) -> str:
        """Name of the profile whose endpoint becomes the destination."""

    def check_profiles(self, names: Sequence[str]) -> Sequence[str]:
        """At start: raise `ConfigError` when these profiles cannot be what is meant; returns warnings."""
        return ()

    def conclude(self, request: InferenceRequest, result: SchedulingResult) -> None:
        """The primary profile has an endpoint: may leave out other profiles, and set the fields of `result`.

        Runs before the `on_picked` hooks, so that nobody counts what this leaves out.
        """


class Decider(Plugin[ParamsT]):
    """Says whether a stage of a request (its prompt, its media) gets a server of its own; a profile handler asks it."""

    @abstractmethod
    def disaggregate(self, request: InferenceRequest, decode: ProfileResult | None) -> bool:
        """`decode` is the result of the profile that answers; None: it has not run yet."""


class SaturationDetector(Plugin[ParamsT]):
    """Says how full the pool is: 0 idle, 1 full, above 1 overloaded."""

    @abstractmethod
    def saturation(self, endpoints: Endpoints) -> float:
        """Over all endpoints of the pool; an empty pool is 1.0."""


class Discovery(Plugin[ParamsT]):
    """Fills the endpoint table from outside Kubernetes. `start` returns after the first complete load."""


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """Where a `DataSource` asks: `GET path` (verbatim, query included) on `host:port`.

    `tls` None: plaintext. `server_name` is what the certificate is checked against; empty: `host`.
    """

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None = None
    server_name: str = ""


class DataSource(Plugin[ParamsT]):
    """Says what is fetched from every endpoint again and again; its extractors turn it into columns and attributes.

    The collector of `epp.datalayer` does the fetching: one kept connection per endpoint and source, any status but
    200 is an error. An endpoint is asked for its target once, when it appears.
    """

    @abstractmethod
    def target(self, endpoint: Endpoint) -> ScrapeTarget:
        """What to fetch for this endpoint. ValueError: not from this one (counted, and never asked)."""

    @property
    def interval(self) -> float | None:
        """Fixed seconds between two fetches of one endpoint; None: the collector adapts to traffic and cost."""
        return None


class Extractor(Plugin[ParamsT]):
    """Turns what a source fetched into columns and attributes of the endpoint's row."""

    @abstractmethod
    def extract(self, row: int, endpoint: Endpoint, data: bytes) -> None:
        """Write to `self.context.table`; raise ValueError when `data` lacks what is expected (after writing the rest).

        An extractor that measures load sets `scraped_at` to the clock. The row belongs to `endpoint` when this runs.
        """


class EndpointSource(Plugin[ParamsT]):
    """A source that fetches nothing: it stands for the endpoints that come, change and go."""


class EndpointExtractor(Plugin[ParamsT]):
    """Hears of endpoints, on the event loop, in the order in which they change; from before the first one.

    It is told whether or not an `EndpointSource` of the configuration names it. What it raises is counted and logged.
    """

    def endpoint_changed(self, row: int, endpoint: Endpoint) -> None:
        """The endpoint is new, or its labels are. The row belongs to it when this runs."""

    def endpoint_removed(self, row: int, endpoint: Endpoint) -> None:
        """The endpoint is gone, and the row is free for another one."""


class GroupVersionKind(NamedTuple):
    """A kind of objects of the Kubernetes API. `group` is empty for the core group."""

    group: str
    version: str
    kind: str


class ObjectSource(Plugin[ParamsT]):
    """A source whose `ObjectExtractor`s hear of objects of one kind in the pool's namespace of the Kubernetes API."""

    @property
    @abstractmethod
    def watched(self) -> GroupVersionKind:
        """Which kind. The picker needs the right to list and watch it."""


class ObjectExtractor(Plugin[ParamsT]):
    """Hears of objects, on the event loop. `obj` is the JSON document; what it raises is counted and logged."""

    def object_changed(self, obj: Mapping[str, Any]) -> None:
        """The object is new or has changed."""

    def object_removed(self, obj: Mapping[str, Any]) -> None:
        """The object is gone; the last known state of it."""


class ProfileResult(msgspec.Struct, eq=False):
    """What one profile chose. `scores` are the weighted sums over `candidates`; `by_scorer` the raw scores per name."""

    profile: str
    picked: tuple[Endpoint, ...]
    rows: tuple[int, ...]
    candidates: Endpoints
    scores: FloatArray
    by_scorer: dict[str, Scores] = msgspec.field(default_factory=dict)


class SchedulingResult(msgspec.Struct, eq=False):
    """All profiles that ran, and the primary one. `headers` are set on the request towards the model server.

    `prefill_profile` names the profile whose endpoint reads the prompt, if it ran. `destination` is what the gateway is
    told instead of the picked endpoints' addresses; empty: those.
    """

    primary: str
    profiles: dict[str, ProfileResult | None]
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    prefill_profile: str = "prefill"
    destination: str = ""

    @property
    def target(self) -> ProfileResult:
        """The primary profile's result."""
        result = self.profiles[self.primary]
        if result is None:
            raise LookupError(f"profile {self.primary} has no result")
        return result

    @property
    def prefill(self) -> ProfileResult | None:
        """Where the prompt is read when that is not the primary endpoint; None: the primary one reads it itself."""
        result = self.profiles.get(self.prefill_profile)
        return None if result is None or self.prefill_profile == self.primary else result
