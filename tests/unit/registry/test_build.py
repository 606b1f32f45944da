"""A configuration becomes plugins at their places, or one message that says what to do."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import epp
from epp.config import default_config, load
from epp.registry import Assembly, Catalog, build, contexts
from epp.registry.effective import effective

NOT_BUILDABLE = Path(__file__).parents[2] / "data" / "config" / "not_buildable.yaml"


class Score(epp.Scorer["Score.Params"]):
    type = "score"
    param_aliases: ClassVar[Mapping[str, str]] = {"limit": "threshold"}

    class Params(epp.Params, frozen=True):
        threshold: int = 5
        reads: tuple[str, ...] = ()
        optional: tuple[str, ...] = ()
        friend: str = ""
        fails: str = ""

    def __init__(self, params: Score.Params, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        if params.fails == "config":
            raise epp.ConfigError("bad threshold", path="threshold", fix="use 5")
        if params.fails:
            raise RuntimeError(params.fails)
        self.friend = context.find(params.friend) if params.friend else None

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return [epp.DataKey(*key.split("/")) for key in self.params.reads]

    @property
    def consumes_if_present(self) -> Sequence[epp.DataKey]:
        return [epp.DataKey(*key.split("/")) for key in self.params.optional]

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        return endpoints.waiting


class Experimental(Score):
    type = "experimental"
    stability = "alpha"


class Old(Score):
    type = "old"
    stability = "deprecated"


class Produce(epp.Producer["Produce.Params"]):
    type = "produce"

    class Params(epp.Params, frozen=True):
        makes: tuple[str, ...] = ()
        reads: tuple[str, ...] = ()

    @property
    def produces(self) -> Sequence[epp.DataKey]:
        return [epp.DataKey(kind, self.name) for kind in self.params.makes]

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return [epp.DataKey(*key.split("/")) for key in self.params.reads]

    def produce(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        pass


def default_producer(kind: str, makes: tuple[str, ...], reads: tuple[epp.DataKey, ...] = ()) -> type[epp.Plugin[Any]]:
    class Default(epp.Producer[epp.NoParams]):
        type = kind

        @property
        def produces(self) -> Sequence[epp.DataKey]:
            return [epp.DataKey(one, self.name) for one in makes]

        @property
        def consumes(self) -> Sequence[epp.DataKey]:
            return reads

        def produce(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
            pass

    return Default


class Pick(epp.Picker[epp.NoParams]):
    type = "max-score-picker"

    def pick(self, request: Any, endpoints: Any, scores: Any) -> Sequence[int]:
        return [0]


class Handle(epp.ProfileHandler[epp.NoParams]):
    type = "single-profile-handler"

    def next_profiles(self, request: Any, profiles: Any, done: Any) -> Sequence[str]:
        return ["default"]

    def primary(self, request: Any, done: Any) -> str:
        return "default"


class Parse(epp.Parser[epp.NoParams]):
    type = "openai-parser"

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> epp.Payload:
        return epp.Payload()


class Detect(epp.SaturationDetector[epp.NoParams], epp.Filter[epp.NoParams]):
    type = "utilization-detector"

    def saturation(self, endpoints: epp.Endpoints) -> float:
        return 0.0

    def filter(self, request: Any, endpoints: epp.Endpoints) -> epp.BoolArray:
        return endpoints.waiting >= 0


class Admit(epp.Admitter[epp.NoParams]):
    type = "admit"

    def admit(self, request: Any, endpoints: Any) -> None:
        pass


class Fetch(epp.DataSource[epp.NoParams]):
    type = "metrics-data-source"

    def target(self, endpoint: epp.Endpoint) -> epp.ScrapeTarget:
        return epp.ScrapeTarget("h", 1, "/")


class Extract(epp.Extractor[epp.NoParams]):
    type = "core-metrics-extractor"

    def extract(self, row: int, endpoint: epp.Endpoint, data: bytes) -> None:
        pass


class Discover(epp.Discovery[epp.NoParams]):
    type = "discover"


def renamed(kind: type[epp.Plugin[Any]], name: str) -> type[epp.Plugin[Any]]:
    return type(kind.__name__, (kind,), {"type": name})


CLASSES: list[type[epp.Plugin[Any]]] = [
    Score, Experimental, Old, Produce, Pick, Handle, Parse, Detect, Admit, Fetch, Extract, Discover,
    renamed(Parse, "anthropic-parser"), renamed(Parse, "vllmhttp-parser"), renamed(Parse, "passthrough-parser"),
    renamed(Score, "queue-scorer"), renamed(Score, "kv-cache-utilization-scorer"),
    renamed(Score, "prefix-cache-scorer"),
    default_producer("token-producer", (epp.TOKENIZED_PROMPT,)),
    default_producer("inflight-load-producer", (epp.INFLIGHT_LOAD, epp.UNCACHED_TOKENS)),
    default_producer(
        "approx-prefix-cache-producer",
        (epp.PREFIX_CACHE_MATCH,),
        (epp.DataKey(epp.TOKENIZED_PROMPT, "token-producer"),),
    ),
]  # fmt: skip
CATALOG = Catalog({kind.type: kind for kind in CLASSES})
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
PREFIX = "PrefixCacheMatchInfoDataKey"


def built(text: str | None, **options: Any) -> Assembly:
    config = default_config() if text is None else load(HEAD + text, "f.yaml").config
    factory = contexts(table=epp.EndpointTable(), clock=lambda: 0.0, rng=random.Random(1), settings={"a": 1})
    return build(config, CATALOG, context_factory=factory, **options)


def test_no_configuration() -> None:
    made = built(None)
    (profile,) = made.profiles
    assert [(scorer.name, weight) for scorer, weight in profile.scorers] == [
        ("queue-scorer", 2.0),
        ("kv-cache-utilization-scorer", 2.0),
        ("prefix-cache-scorer", 3.0),
    ]
    assert profile.picker.type == "max-score-picker"
    assert [parser.type for parser in made.parsers][-1] == "passthrough-parser"
    assert made.handler.type == "single-profile-handler"
    assert made.saturation_detector.type == "utilization-detector"
    assert [(s.source.type, [e.type for e in s.extractors]) for s in made.sources] == [
        ("metrics-data-source", ["core-metrics-extractor"])
    ]
    assert made.discovery is None
    assert made.warnings == ()


def test_everything_at_its_place() -> None:
    made = built(
        """
plugins:
- {name: d, type: discover}
- {name: one, type: score, parameters: {threshold: 7}}
- {name: two, type: score, parameters: {limit: 8}}
- {type: utilization-detector}
- {type: admit}
schedulingProfiles:
- name: p
  plugins: [{pluginRef: utilization-detector}, {pluginRef: two, weight: 0.5}, {pluginRef: one}]
dataLayer: {discovery: {pluginRef: d}}
"""
    )
    (profile,) = made.profiles
    assert [f.name for f in profile.filters] == ["utilization-detector"]
    assert [(s.name, w, s.params.threshold) for s, w in profile.scorers] == [("two", 0.5, 8), ("one", 1.0, 7)]
    assert [a.name for a in made.admitters] == ["admit"]
    assert made.discovery is made.plugins.by_name["d"]
    assert made.plugins.start_order[-1] is made.discovery
    assert made.plugins.by_name["one"].context.settings == {"a": 1}
    drawn = {plugin.context.rng.random() for plugin in made.plugins.by_name.values()}
    assert len(drawn) == len(made.plugins.by_name)


def test_missing_producers_are_added_with_what_they_need() -> None:
    made = built(f"plugins: [{{type: score, parameters: {{reads: [{PREFIX}/approx-prefix-cache-producer]}}}}]")
    added_producers = [p.name for p in made.plugins.producers if p.name != "inflight-load-producer"]
    assert added_producers == ["token-producer", "approx-prefix-cache-producer"]
    names = [p.name for p in made.plugins.start_order]
    assert names.index("token-producer") < names.index("approx-prefix-cache-producer") < names.index("score")
    added = made.config.find("approx-prefix-cache-producer")
    assert added is not None
    assert made.config.is_default(f"plugins[{made.config.plugins.index(added)}]")
    assert made.warnings == ()


def test_a_renamed_producer_fills_the_one_prompt_that_all_share() -> None:
    made = built(
        "plugins: [{name: mine, type: token-producer}, "
        "{type: score, parameters: {reads: [TokenizedPrompt/token-producer]}}]"
    )
    assert [p.name for p in made.plugins.producers] == ["mine", "inflight-load-producer"]


def test_a_renamed_in_flight_producer_does_not_fill_the_default_columns() -> None:
    made = built(
        "plugins: [{name: mine, type: inflight-load-producer}, "
        "{type: score, parameters: {reads: [InFlightLoadDataKey/inflight-load-producer]}}]"
    )
    assert [p.name for p in made.plugins.producers] == ["mine", "inflight-load-producer"]
    assert "it does not read mine" in made.warnings[0]


def test_a_second_producer_that_is_not_read_is_pointed_out() -> None:
    made = built(
        f"plugins: [{{name: gpu, type: approx-prefix-cache-producer}}, "
        f"{{type: score, parameters: {{reads: [{PREFIX}/approx-prefix-cache-producer]}}}}]"
    )
    assert len(made.warnings) == 1
    assert "f.yaml:3: plugins[1]: score reads" in made.warnings[0]
    assert "it does not read gpu" in made.warnings[0]


def test_producers_run_after_what_they_read() -> None:
    made = built(
        """
plugins:
- {name: c, type: produce, parameters: {makes: [C], reads: [B/b]}}
- {name: b, type: produce, parameters: {makes: [B], reads: [A/a]}}
- {name: a, type: produce, parameters: {makes: [A]}}
- {type: score, parameters: {reads: [C/c], optional: [Z/z, A/a]}}
"""
    )
    assert [p.name for p in made.plugins.producers] == ["a", "b", "c", "inflight-load-producer"]
    assert made.warnings == ("f.yaml:8: plugins[3]: score goes without Z/z: nobody produces it",)


def test_find_builds_what_is_asked_for_first() -> None:
    made = built(
        "plugins: [{name: x, type: score, parameters: {friend: y}}, {name: y, type: score}, "
        "{name: z, type: score, parameters: {friend: inflight-load-producer}}]"
    )
    by_name = made.plugins.by_name
    x, z = by_name["x"], by_name["z"]
    assert isinstance(x, Score)
    assert isinstance(z, Score)
    assert x.friend is by_name["y"]
    assert z.friend is by_name["inflight-load-producer"]
    assert x.context.find("z") is z


@pytest.mark.parametrize("case", yaml.safe_load(NOT_BUILDABLE.read_text()))
def test_what_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(epp.ConfigError) as error:
        built(case["config"])
    assert str(error.value).startswith(case["says"])


def test_stability() -> None:
    assert built("plugins: [{type: experimental}]", allow_experimental=True).warnings == ()
    assert "plugin type `old` is deprecated" in built("plugins: [{type: old}, {name: o, type: old}]").warnings[0]


def test_the_flow_control_gate_says_what_it_does_not_do() -> None:
    assert any("has no queues" in warning for warning in built("featureGates: [flowControl]").warnings)


def test_the_effective_configuration_marks_what_was_filled_in() -> None:
    made = built(
        """
plugins:
- {name: q, type: score, parameters: {threshold: 7, reads: [A/a]}}
- {name: a, type: produce, parameters: {makes: [A]}}
flowControl: {defaultRequestTTL: 5s}
"""
    )
    tree, defaults = effective(made)
    assert tree["plugins"][0]["parameters"]["threshold"] == 7
    assert tree["plugins"][0]["parameters"]["reads"] == ["A/a"]
    assert tree["schedulingProfiles"][0]["plugins"][0] == {"pluginRef": "q", "weight": 1.0}
    assert tree["flowControl"]["defaultRequestTTL"] == "5s"
    assert set(tree["flowControl"]) == {"saturationDetector", "defaultRequestTTL"}
    assert tree["dataLayer"]["crossReplicaSyncInterval"] == "200ms"
    assert "schedulingProfiles" in defaults
    assert "plugins[2]" in defaults
    assert "flowControl.saturationDetector" in defaults
    assert not {"plugins", "plugins[0]", "plugins[0].parameters.threshold", "flowControl.defaultRequestTTL"} & set(
        defaults
    )
