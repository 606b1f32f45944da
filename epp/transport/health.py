"""`grpc.health.v1`: what probes and load balancers ask, and what the answer depends on.

Without leader election every name is answered as readiness, except `liveness`, which says that the process can answer
at all: also while it drains, so that no kubelet kills a pod that is still serving. With leader election only the known
names exist, and readiness wants the lease too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from epp.transport.call import Call, CloseReason, Handler
from epp.transport.health_messages import ServingStatus, decode_request, encode_list, encode_response

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
LIST = "/grpc.health.v1.Health/List"

LIVENESS = "liveness"
READINESS = "readiness"
POOL = "inference-extension"
EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
SERVICES = ("", LIVENESS, READINESS, POOL, EXT_PROC)
"""Names that there are; `POOL` only without leader election, as in llm-d-router."""

_WITH_PLUGINS = ("", READINESS, EXT_PROC)  # single-replica charts probe POOL, which does not wait for plugins
_WITH_LEADER = ("", READINESS, EXT_PROC)
_MAX_WATCHES = 1000  # probes are few; each watch holds a stream

_INVALID_ARGUMENT = 3
_RESOURCE_EXHAUSTED = 8


class HealthState:
    """What readiness depends on. Setting anything tells the watchers whose answer has changed.

    `synced`: the endpoints are known and the parsers fit the pool; `plugins_ready`: no plugin is warming up;
    `leader`: this replica holds the lease (only asked for with `leader_election`); `draining`: the end has begun.
    """

    def __init__(self, *, leader_election: bool = False) -> None:
        self.leader_election = leader_election
        self._synced = False
        self._plugins_ready = True
        self._leader = False
        self._draining = False
        self._watchers: dict[object, Callable[[], None]] = {}

    def update(
        self,
        *,
        synced: bool | None = None,
        plugins_ready: bool | None = None,
        leader: bool | None = None,
        draining: bool | None = None,
    ) -> None:
        """Set what is given, then tell the watchers once."""
        if synced is not None:
            self._synced = synced
        if plugins_ready is not None:
            self._plugins_ready = plugins_ready
        if leader is not None:
            self._leader = leader
        if draining is not None:
            self._draining = draining
        for notify in list(self._watchers.values()):
            notify()

    @property
    def ready(self) -> bool:
        """Whether the gateway should send requests."""
        return self.status(EXT_PROC) is ServingStatus.SERVING

    def status(self, service: str) -> ServingStatus:
        """The answer for one service name."""
        if service == LIVENESS:
            return ServingStatus.SERVING
        if self.leader_election and service not in _WITH_LEADER:
            return ServingStatus.SERVICE_UNKNOWN
        serving = (
            self._synced
            and not self._draining
            and (self._plugins_ready or service not in _WITH_PLUGINS)
            and (self._leader or not self.leader_election)
        )
        return ServingStatus.SERVING if serving else ServingStatus.NOT_SERVING

    def statuses(self) -> dict[str, ServingStatus]:
        """The answer for every name that exists in this mode."""
        known = {service: self.status(service) for service in SERVICES}
        return {service: status for service, status in known.items() if status is not ServingStatus.SERVICE_UNKNOWN}

    @property
    def watchers(self) -> int:
        """How many are told of changes."""
        return len(self._watchers)

    def watch(self, key: object, notify: Callable[[], None]) -> None:
        """Call `notify` after every change, until `unwatch(key)`."""
        self._watchers[key] = notify

    def unwatch(self, key: object) -> None:
        """Stop calling."""
        self._watchers.pop(key, None)


def health_handlers(state: HealthState) -> dict[str, Handler]:
    """Handlers of the health service by gRPC path."""
    return {
        CHECK: partial(_Check, state),
        WATCH: partial(_Watch, state),
        LIST: partial(_List, state),
    }


class _Unary:
    """Answers the first message, once."""

    __slots__ = ("_call", "_done", "_state")

    def __init__(self, state: HealthState, call: Call) -> None:
        self._state = state
        self._call = call
        self._done = False

    def receive(self, message: bytes) -> None:
        if not self._done:
            self._done = True
            self._answer(message)

    def half_closed(self) -> None:
        if not self._done:
            self._done = True
            self._call.finish(_INVALID_ARGUMENT, "the request message is missing")

    def closed(self, reason: CloseReason) -> None:
        self._done = True

    def _answer(self, message: bytes) -> None:
        raise NotImplementedError


class _Check(_Unary):
    __slots__ = ()

    def _answer(self, message: bytes) -> None:
        service = _service(self._call, message)
        if service is None:
            return
        # An unknown name gets SERVICE_UNKNOWN, as llm-d-router answers it, and no error: probes show the status.
        self._call.send(encode_response(self._state.status(service)))
        self._call.finish()


class _List(_Unary):
    __slots__ = ()

    def _answer(self, message: bytes) -> None:
        self._call.send(encode_list(self._state.statuses()))
        self._call.finish()


class _Watch(_Unary):
    """Sends the status now and whenever it changes, until the client goes away."""

    __slots__ = ("_sent", "_service")

    def __init__(self, state: HealthState, call: Call) -> None:
        super().__init__(state, call)
        self._sent: ServingStatus | None = None
        self._service = ""

    def closed(self, reason: CloseReason) -> None:
        super().closed(reason)
        self._state.unwatch(self)

    def _answer(self, message: bytes) -> None:
        service = _service(self._call, message)
        if service is None:
            return
        if self._state.watchers >= _MAX_WATCHES:
            self._call.finish(_RESOURCE_EXHAUSTED, f"{_MAX_WATCHES} watches are open already; use Check")
            return
        self._service = service
        self._state.watch(self, self._tell)
        self._tell()

    def _tell(self) -> None:
        status = self._state.status(self._service)
        if status is not self._sent:
            self._sent = status
            self._call.send(encode_response(status))


def _service(call: Call, message: bytes) -> str | None:
    try:
        return decode_request(message)
    except ValueError as error:
        call.finish(_INVALID_ARGUMENT, f"not a HealthCheckRequest: {error}")
        return None
