"""Why no KV events arrive, or the wrong ones: from what was seen to plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from epp.kvevents.bound import topic_endpoint
from epp.kvevents.probe import Heard, Replayed
from epp.kvevents.zmtp import Peer, split_address


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is stable, for programs; `fix` is empty when there is nothing to do."""

    level: Literal["ok", "warning", "problem"]
    code: str
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """How the picker is configured."""

    address: str
    topic: str = "kv@"
    rank: int = 0
    block_size: int | None = None
    bind: bool = False


def of_port(peer: Peer, expected: Expected) -> Finding:
    """Who listens on the port of the events."""
    address = expected.address
    connects = (
        "The server publishes no events, or its publisher connects instead of binding: vLLM binds only when the "
        "endpoint in --kv-events-config has a `*` or `::` (tcp://*:5557). With tcp://127.0.0.1:5557 it dials that "
        "address. Set tcp://*:PORT, or let the picker bind (kvEventsConfig.zmqEndpoint) and check with --bind. "
        "Data-parallel rank r listens on PORT + r."
    )
    match peer:
        case Peer("refused"):
            return Finding("problem", "nothing-listens", f"Nothing listens on {address}.", connects)
        case Peer("timeout"):
            fix = "Look for a firewall or a network policy between the picker and the server; is the address the pod's?"
            return Finding("problem", "unreachable", f"{address} does not answer to a connection attempt.", fix)
        case Peer("unresolved"):
            return Finding(
                "problem", "unknown-host", f"The name in {address} cannot be resolved.", "Give an IP address."
            )
        case Peer("foreign"):
            http = peer.said.startswith(b"HTTP")
            what = "an HTTP server" if http else f"something that begins with {peer.said[:10]!r}"
            fix = "Give the port of --kv-events-config's endpoint, not the port of the API." if http else ""
            fix = fix or "Give the port of --kv-events-config's endpoint (5557 by default)."
            return Finding("problem", "not-zmq", f"{address} listens, but is not ZMQ: {what}.", fix)
        case Peer("silent"):
            fix = "Give the port of --kv-events-config's endpoint; an HTTP server also waits in silence."
            return Finding("problem", "not-zmq", f"{address} listens, but does not greet as ZMQ does.", fix)
        case Peer("zmq", "ROUTER"):
            message = f"{address} is a replay port (a ROUTER socket), not the port of the events."
            return Finding("problem", "replay-port", message, "Give the port of `endpoint`, not `replay_endpoint`.")
        case Peer("zmq", kind) if kind not in ("PUB", "XPUB", ""):
            message = f"{address} is a ZMQ {kind} socket, not a publisher."
            fix = "If another picker binds here, its publishers connect to it: check with --bind on a free port."
            return Finding("problem", "not-a-publisher", message, fix)
    return Finding("ok", "publisher", f"{address} is a ZMQ publisher.")


def of_events(heard: Heard, expected: Expected, seconds: float) -> list[Finding]:
    """What came, with a subscription to every topic."""
    findings: list[Finding] = []
    if not heard.messages:
        if expected.bind and not heard.connections:
            fix = (
                "The server's endpoint must name this machine (tcp://PICKER:PORT, without `*`), and the port must be "
                "reachable from the server. A publisher that binds is checked without --bind."
            )
            return [Finding("problem", "nobody-connects", f"Nobody connected within {seconds:g} s.", fix)]
        fix = (
            "An idle server has nothing to tell: send it a new prompt that is longer than a block and check again. If "
            "there are none then: is enable_kv_cache_events true, is prefix caching on? A data-parallel rank that gets "
            "no requests is silent too."
        )
        return [Finding("warning", "no-events", f"Connected, but no events within {seconds:g} s.", fix)]
    findings.append(Finding("ok", "events", f"{heard.messages} messages, topics {_names(heard.topics)}."))
    fitting = [topic for topic in heard.topics if topic.startswith(expected.topic)]
    if not fitting:
        fix = (
            f"The picker subscribes to topics that begin with {expected.topic!r}. Set topic to "
            "kv@IP:PORT@MODEL in --kv-events-config, or kvEventsConfig.topicFilter to what is published."
        )
        findings.append(Finding("problem", "wrong-topic", f"No topic begins with {expected.topic!r}.", fix))
    elif expected.bind and not any(topic_endpoint(topic.encode()) for topic in fitting):
        fix = "A picker that binds knows the server by its topic only: set it to kv@IP:PORT@MODEL."
        findings.append(Finding("problem", "topic-without-endpoint", "The topic names no endpoint.", fix))
    if not expected.bind and heard.ranks and expected.rank not in heard.ranks:
        seen = min(heard.ranks)
        fix = f"Rank r publishes on its base port + r: rank {expected.rank} is on port {_shifted(expected, seen)}."
        message = f"The events are of data-parallel rank {seen}, not {expected.rank}."
        findings.append(Finding("problem", "wrong-rank", message, fix))
    if heard.gaps:
        fix = "The publisher dropped messages (its hwm) or the network is too slow; a replay port repairs such gaps."
        findings.append(Finding("warning", "gaps", f"{heard.gaps} sequence numbers were left out.", fix))
    if heard.unreadable or heard.bad_frames or heard.decode_errors:
        message = f"{heard.unreadable + heard.bad_frames} messages could not be read ({heard.decode_errors})."
        fix = "Three frames are expected: topic, 8-byte sequence, msgpack batch, as vLLM and SGLang write them."
        findings.append(Finding("problem", "unreadable", message, fix))
    if heard.skipped:
        kinds = sorted({kind for _, kind, _ in heard.skipped})
        findings.append(Finding("ok", "skipped", f"Events of cache kinds {', '.join(kinds)} are not indexed."))
    return findings


def of_block_size(heard: Heard, expected: Expected, on_metrics_page: int | None) -> list[Finding]:
    """The block sizes that the events, the configuration and the server's metrics page tell."""
    published = {size for size in heard.block_sizes if size > 0}
    findings: list[Finding] = []
    if len(published) == 1 and on_metrics_page and on_metrics_page not in published:
        message = f"Events have blocks of {min(published)} tokens, the metrics page says {on_metrics_page}."
        fix = "Are both of the same server? Hybrid models and context parallelism may differ by design."
        findings.append(Finding("warning", "block-size-page", message, fix))
    served = published or ({on_metrics_page} if on_metrics_page else set())
    if expected.block_size and served and expected.block_size not in served:
        message = (
            f"The server's blocks have {_names(served)} tokens, the picker is configured for {expected.block_size}."
        )
        fix = (
            "Set tokenProcessorConfig.blockSizeTokens to the server's block size. It works otherwise, but prefixes "
            "then count only where whole blocks of both sizes end."
        )
        findings.append(Finding("problem", "block-size", message, fix))
    elif served:
        findings.append(Finding("ok", "block-size", f"Blocks of {_names(served)} tokens."))
    return findings


def of_replay(replayed: Replayed, address: str) -> Finding:
    """Whether lost events can be asked for again."""
    kind = replayed.peer.socket_type
    if replayed.peer.reach != "zmq":
        fix = 'Set "replay_endpoint": "tcp://*:PORT" in --kv-events-config; rank r listens on PORT + r.'
        return Finding("problem", "replay-dead", f"No replay port at {address} ({replayed.peer.reach}).", fix)
    if kind not in ("ROUTER", ""):
        message = f"{address} is a ZMQ {kind} socket, not a replay port."
        return Finding("problem", "replay-dead", message, "Give the port of `replay_endpoint`, not `endpoint`.")
    if not replayed.answered:
        message = f"The replay port {address} does not answer."
        fix = "The publisher's thread may hang: look at the server. Without it, gaps are only counted."
        return Finding("problem", "replay-dead", message, fix)
    return Finding("ok", "replay", f"The replay port {address} answers with {replayed.messages} messages.")


def of_sources(sources: Mapping[str, Any] | None, expected: Expected) -> list[Finding]:
    """What `GET /kv_event_sources` says of each rank; None: the server does not have it (older vLLM, SGLang)."""
    if sources is None:
        return []
    source = sources.get(str(expected.rank))
    if not isinstance(source, dict):
        ranks = _names(sources)
        message = f"The server has no data-parallel rank {expected.rank}, only {ranks}."
        return [Finding("problem", "no-such-rank", message, "Check with --rank one of these.")]
    findings: list[Finding] = []
    if not source.get("enable_kv_cache_events") or source.get("publisher") != "zmq":
        fix = '--kv-events-config \'{"enable_kv_cache_events": true, "publisher": "zmq", ...}\''
        return [
            Finding("problem", "disabled", "The server is configured to publish no KV events.", f"Start it with {fix}.")
        ]
    endpoint, topic = str(source.get("endpoint", "")), str(source.get("topic", ""))
    dials = not ("*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc:", "inproc:")))
    try:
        port = split_address(endpoint.replace("*", "any"))[1]
        ours = split_address(expected.address.replace("*", "any"))[1]
    except ValueError:
        port = ours = 0
    if port != ours:
        message = f"The server's rank {expected.rank} publishes on {endpoint}, not on port {ours}."
        findings.append(Finding("problem", "wrong-port", message, f"Use port {port} (podDiscoveryConfig.socketPort)."))
    if dials and not expected.bind:
        # The server tells resolved addresses: with port 0 the bound one looks alike, so this is no proof.
        message = f"The server's endpoint is {endpoint}, without `*`: if it was configured so, it connects there."
        fix = "vLLM binds only with `*` or `::` in the endpoint: set tcp://*:PORT, or let the picker bind there."
        findings.append(Finding("warning", "may-connect", message, fix))
    if not topic.startswith(expected.topic):
        fix = "Set topic to kv@IP:PORT@MODEL in --kv-events-config, or kvEventsConfig.topicFilter to what is published."
        findings.append(
            Finding(
                "problem", "wrong-topic", f"The server's topic {topic!r} does not begin with {expected.topic!r}.", fix
            )
        )
    return findings


def _shifted(expected: Expected, seen: int) -> int:
    return split_address(expected.address)[1] + expected.rank - seen


def _names(values: Any) -> str:
    return ", ".join(repr(value) if isinstance(value, str) else str(value) for value in sorted(values))
