"""The kit that plugin authors test with behaves like the picker."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

import epp
from epp.testing import ManualClock, TextPayload, assemble, context, endpoints, plugin, request, response


class Short(epp.Scorer["Short.Params"]):
    type = "short"

    class Params(epp.Params, frozen=True):
        longest_queue: int = 10

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        if request.headers.get("x-break"):
            raise RuntimeError("broken")
        return 1 - endpoints.waiting / self.params.longest_queue

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        result.headers["x-short"] = result.target.picked[0].pod


class Slow(epp.Producer[epp.NoParams]):
    type = "slow"

    async def produce(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        raise AssertionError("never awaited")


class Unfinished(epp.Scorer[epp.NoParams]):
    type = "unfinished"


class Follows(Short):
    type = "follows"

    def __init__(self, params: Short.Params, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self.other = context.find("other")


def test_the_clock_goes_forward_only() -> None:
    clock = ManualClock(5.0)
    assert (clock(), clock.advance(2.5), clock()) == (5.0, 7.5, 7.5)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)


def test_endpoints_have_the_numbers_that_were_said() -> None:
    made = endpoints(
        waiting=[0, 3],
        gpu=[0.5, math.nan],
        labels=[{"zone": "a"}, {}],
        attributes={epp.LORA: [epp.LoraInfo(max_active=2), None]},
    )
    assert made.waiting.tolist() == [0, 3]
    assert made.column("gpu")[0] == 0.5
    assert np.isnan(made.kv_usage).all()
    assert made.age.tolist() == [0, 0]
    assert made.label("zone") == ["a", None]
    assert made.attribute(epp.LORA)[0].max_active == 2
    assert made.addresses() == ["10.0.0.1:8000", "10.0.0.2:8000"]
    assert [endpoint.pod for endpoint in made] == ["pod-0", "pod-1"]
    assert len(set(endpoints(1000).addresses())) == 1000


def test_endpoints_must_agree_on_their_number() -> None:
    with pytest.raises(ValueError, match=r"speak of \[1, 2\]"):
        endpoints(waiting=[1, 2], running=[1])
    with pytest.raises(ValueError, match="none"):
        endpoints()


def test_requests() -> None:
    asked = request("Hello", headers={"X-Session-Id": "s"}, stream=True, max_tokens=7, priority=-1)
    assert asked.headers["x-session-id"] == "s"
    assert asked.input_tokens == 2
    assert asked.prompt is not None
    assert asked.prompt.data == (b"Hello\0\0\0",)
    assert isinstance(asked.payload, TextPayload)
    assert [list(map(str, parts)) for parts in asked.payload.parts() if all(isinstance(p, str) for p in parts)] == [
        ["Hello"]
    ]
    assert (asked.payload.stream, asked.payload.max_tokens, asked.priority) == (True, 7, -1)
    assert request(tokenised=False).input_tokens == 0
    assert response(503, prompt_tokens=3).usage.prompt_tokens == 3


def test_plugins_are_checked_and_read_as_the_picker_does() -> None:
    scorer = plugin(Short, {"longestQueue": 4})
    assert scorer.name == "short"
    assert scorer.score(request(), endpoints(waiting=[0, 1])).tolist() == [1.0, 0.75]
    with pytest.raises(epp.ConfigError, match="did you mean `longestQueue`"):
        plugin(Short, {"longestQeue": 4})
    with pytest.raises(epp.ConfigError, match="does not implement `score`"):
        plugin(Unfinished)  # type: ignore[type-abstract]


def test_others_are_found() -> None:
    other = plugin(Short, name="other")
    assert plugin(Follows, others={"other": other}).other is other
    with pytest.raises(LookupError, match="hand it over in `others`"):
        plugin(Follows)


def test_chance_is_seeded() -> None:
    assert context("a", seed=3).rng.random() == context("b", seed=3).rng.random()


def test_a_whole_configuration_picks() -> None:
    made = assemble("plugins: [{type: short}]", types=[Short])
    result = made.schedule(request(), endpoints(waiting=[5, 2, 9], table=made.table))
    assert result.target.picked[0].pod == "pod-1"
    assert result.target.by_scorer["short"].tolist() == pytest.approx([0.5, 0.8, 0.1])
    assert result.headers == {"x-short": "pod-1"}
    assert isinstance(made["short"], Short)


def test_failures_are_not_hidden() -> None:
    made = assemble("plugins: [{type: short}]", types=[Short])
    with pytest.raises(RuntimeError, match="broken"):
        made.schedule(request(headers={"x-break": "1"}), endpoints(waiting=[1], table=made.table))
    waits = assemble("plugins: [{type: slow}]", types=[Slow])
    with pytest.raises(NotImplementedError, match="slow waits"):
        waits.schedule(request(), endpoints(1, table=waits.table))


@pytest.mark.parametrize("text", ["", "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig"])
def test_nothing_but_defaults(text: str) -> None:
    made = assemble(text)
    picked: Sequence[epp.Endpoint] = made.schedule(request(), endpoints(3, table=made.table)).target.picked
    assert len(picked) == 1
