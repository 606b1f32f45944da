"""Every way in which the parts of a configuration may not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from epp.config import LocatedError, Role, apply_defaults, load, validate

DATA = Path(__file__).parents[2] / "data" / "config"

ROLES = {
    "s": {Role.SCORER},
    "f": {Role.FILTER},
    "max-score-picker": {Role.PICKER},
    "p2": {Role.PICKER},
    "single-profile-handler": {Role.PROFILE_HANDLER},
    "h": {Role.PROFILE_HANDLER},
    "metrics-data-source": {Role.DATA_SOURCE},
    "core-metrics-extractor": {Role.EXTRACTOR},
    "openai-parser": {Role.PARSER},
    "anthropic-parser": {Role.PARSER},
    "vllmhttp-parser": {Role.PARSER},
    "passthrough-parser": {Role.PARSER},
    "utilization-detector": {Role.SATURATION_DETECTOR, Role.FILTER},
    "d": {Role.DISCOVERY},
    "producer": {Role.PRODUCER},
    "hooks": {Role.HOOKS},
    "policy": set(),
}


def roles(kind: str) -> frozenset[Role]:
    return frozenset(ROLES.get(kind, ()))


def checked(text: str) -> list[str]:
    head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
    return validate(apply_defaults(load(head + text, "f.yaml").config, roles), roles)


def cases(file: str) -> list[tuple[str, str]]:
    return [(case["config"], case["says"]) for case in yaml.safe_load((DATA / file).read_text())]


def test_a_good_one_has_no_warnings() -> None:
    assert (
        checked(
            "plugins: [{type: s}, {type: f}, {type: d}, {type: producer}, {type: hooks}, {type: policy}]\n"
            "schedulingProfiles: [{name: a, plugins: [{pluginRef: s, weight: 2}, {pluginRef: f}]}]\n"
            "dataLayer: {discovery: {pluginRef: d}}\n"
            "featureGates: [flowControl]\n"
            "flowControl: {defaultPriorityBand: {fairnessPolicyRef: policy}, usageLimitPolicyPluginRef: policy,"
            " priorityBands: [{priority: 1, orderingPolicyRef: policy}]}"
        )
        == []
    )


@pytest.mark.parametrize(("text", "said"), cases("refused.yaml"))
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(LocatedError) as error:
        checked(text)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(("text", "said"), cases("warned.yaml"))
def test_what_has_no_effect_is_said(text: str, said: str) -> None:
    warnings = checked(text)
    assert len(warnings) == 1
    assert said in warnings[0]
