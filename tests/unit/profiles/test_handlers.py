"""Which profile runs, and whose endpoint answers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import epp
from epp.testing import assemble, endpoints, plugin, request
from epp_plugins.profiles.header import HeaderProfileHandler
from epp_plugins.profiles.single import SingleProfileHandler

PROFILES: Mapping[str, object] = {"decode": object(), "prefill": object()}


def done(name: str) -> dict[str, epp.ProfileResult | None]:
    candidates = endpoints(1)
    return {name: epp.ProfileResult(name, (candidates[0],), (0,), candidates, candidates.waiting)}


def test_single_profile_runs_once() -> None:
    handler = plugin(SingleProfileHandler)
    only = {"default": object()}
    assert handler.next_profiles(request(), only, {}) == ("default",)
    assert handler.next_profiles(request(), only, done("default")) == ()
    assert handler.primary(request(), done("default")) == "default"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"EPP-Profile": "prefill"}, "prefill"),
        ({"epp-profile": " prefill "}, "prefill"),
        ({"EPP-Profile": "  "}, "decode"),
        ({"EPP-Profile": ""}, "decode"),
        ({}, "decode"),
    ],
)
def test_header_names_the_profile(headers: dict[str, str], expected: str) -> None:
    handler = plugin(HeaderProfileHandler)
    asked = request(headers=headers)
    assert handler.next_profiles(asked, PROFILES, {}) == (expected,)
    assert handler.next_profiles(asked, PROFILES, done(expected)) == ()
    assert handler.primary(asked, done(expected)) == expected


def test_own_header_and_default() -> None:
    handler = plugin(HeaderProfileHandler, {"headerName": "X-Class", "defaultProfile": "prefill"})
    assert handler.next_profiles(request(), PROFILES, {}) == ("prefill",)
    assert handler.next_profiles(request(headers={"x-class": "decode"}), PROFILES, {}) == ("decode",)
    assert handler.next_profiles(request(headers={"epp-profile": "decode"}), PROFILES, {}) == ("prefill",)


def test_unknown_profile_is_refused() -> None:
    handler = plugin(HeaderProfileHandler)
    with pytest.raises(epp.ResourceExhausted, match=r"'Prefill' \(from header EPP-Profile\), only decode, prefill"):
        handler.next_profiles(request(headers={"epp-profile": "Prefill"}), PROFILES, {})
    odd = plugin(HeaderProfileHandler, {"defaultProfile": "main"})
    with pytest.raises(epp.ResourceExhausted, match=r"'main' \(from defaultProfile\)"):
        odd.next_profiles(request(), PROFILES, {})


def test_the_only_profile_runs_whatever_the_header_says() -> None:
    handler = plugin(HeaderProfileHandler)
    only = {"default": object()}
    assert handler.next_profiles(request(headers={"epp-profile": "prefill"}), only, {}) == ("default",)
    assert handler.next_profiles(request(), only, {}) == ("default",)


def test_profiles_of_one_pool_by_header() -> None:
    made = assemble(
        """
        plugins:
        - type: header-profile-handler
        - type: prefill-filter
        - type: decode-filter
        schedulingProfiles:
        - name: prefill
          plugins: [{pluginRef: prefill-filter}]
        - name: decode
          plugins: [{pluginRef: decode-filter}]
        """
    )
    pool = endpoints(labels=[{"llm-d.ai/role": "prefill"}, {"llm-d.ai/role": "decode"}], table=made.table)
    for profile, name in (("prefill", "pod-0-rank-0"), ("decode", "pod-1-rank-0"), ("", "pod-1-rank-0")):
        result = made.schedule(request(headers={"EPP-Profile": profile}), pool)
        assert result.primary == (profile or "decode")
        assert result.target.picked[0].name == name
    with pytest.raises(epp.ResourceExhausted) as refused:
        made.schedule(request(headers={"EPP-Profile": "encode"}), pool)
    assert refused.value.status == 429
