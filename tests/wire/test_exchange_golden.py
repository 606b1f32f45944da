"""Golden exchanges: what a gateway sends, and every message it gets back, readable.

Each file of `golden/` is one stream, in YAML: `about`, `decision` (or `refusal`), optional `settings`, and `steps` of
one message each with its replies. A message is named by its kind; `request_headers` may come with `modes` and every
message with `metadata`. A reply lists all that is in it, so that nothing is sent that is not written here. The bytes
are made and read by the protobuf library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import MessageToDict

from epp.api import ResourceExhausted
from epp.director.flight import Decision
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.settings import ExchangeSettings
from tests.extproc_gateway import (
    Conversation,
    ObedientDirector,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.yaml"))


def message(step: dict[str, Any]) -> bytes:
    """The bytes of a step's message."""
    context = step.get("metadata")
    if "request_headers" in step:
        modes = step.get("modes")
        numbers = None if modes is None else tuple(pb.BodySendMode.Value(mode) for mode in modes)
        return request_headers(
            step["request_headers"] or {},
            end_of_stream=step.get("end_of_stream", False),
            modes=numbers,
            in_value=step.get("in_value", False),
            context=context,
        )
    if "response_headers" in step:
        return response_headers(step["response_headers"] or {}, step.get("end_of_stream", False), context)
    for kind, make in (("request_body", request_body), ("response_body", response_body)):
        if kind in step:
            return make(text(step[kind]), step.get("end_of_stream", False), context)
    return request_trailers() if "request_trailers" in step else response_trailers()


def text(body: str | dict[str, Any]) -> bytes:
    """A body, or `{repeat: text, times: n}`."""
    return body.encode() if isinstance(body, str) else (body["repeat"] * body["times"]).encode()


def shown(body: bytes) -> str | int:
    """A body in a reply; of a long one its length."""
    return body.decode() if len(body) <= 1000 else len(body)


def reply_shown(reply: pb.ProcessingResponse) -> dict[str, Any]:
    """A reply as the golden files write it: everything that is set, and nothing else."""
    kind = reply.WhichOneof("response") or "nothing"
    part = getattr(reply, kind)
    result: dict[str, Any] = {}
    if kind == "immediate_response":
        result = {
            "status": part.status.code,
            "grpc_status": part.grpc_status.status,
            "details": part.details,
            "body": part.body.decode(),
        }
        mutation = part.headers
    elif kind.endswith("trailers"):
        mutation = part.header_mutation
    else:
        common = part.response
        mutation = common.header_mutation
        if common.clear_route_cache:
            result["clear_route_cache"] = True
        match common.body_mutation.WhichOneof("mutation"):
            case "streamed_response":
                piece = common.body_mutation.streamed_response
                result["streamed"] = shown(piece.body)
                if piece.end_of_stream:
                    result["end_of_stream"] = True
            case "body":
                result["body"] = shown(common.body_mutation.body)
            case "clear_body":
                result["body"] = ""
    if mutation.set_headers:
        result["set"] = {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}
    if mutation.remove_headers:
        result["remove"] = list(mutation.remove_headers)
    if reply.HasField("dynamic_metadata"):
        result["metadata"] = MessageToDict(reply.dynamic_metadata)
    return {kind: result}


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_golden(path: Path) -> None:
    golden = yaml.safe_load(path.read_text())
    assert golden["about"]
    if "refusal" in golden:

        def refuse(*_: object) -> Any:
            raise ResourceExhausted(golden["refusal"]["message"], reason=golden["refusal"]["reason"])

        director = ObedientDirector(answer=refuse)
    else:
        decision = dict(golden["decision"])
        if "body" in decision:
            decision["body"] = decision["body"].encode()
        if "restore_model" in decision:
            decision["restore_model"] = tuple(decision["restore_model"])
        director = ObedientDirector(Decision(**decision))
    talk = Conversation(director, ExchangeSettings(**golden.get("settings", {})))
    for number, step in enumerate(golden["steps"]):
        before = len(talk.replies)
        if step.get("half_close"):
            talk.half_close()
        else:
            talk.say(message(step))
        told = [reply_shown(reply) for reply in talk.replies[before:]]
        assert told == (step.get("replies") or []), f"{path.name}, step {number + 1}"
        assert (talk.finished is not None) == bool(step.get("finished")), f"{path.name}, step {number + 1}"
    assert [str(cause) for flight in talk.director.flights for cause in flight.ends] == golden["ended"]


def test_there_are_golden_exchanges() -> None:
    assert len(GOLDEN) >= 12
