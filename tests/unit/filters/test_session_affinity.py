"""Sessions: a token in a header, or an id that is remembered; as a hard rule and as a preference."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

import epp
from epp.testing import ManualClock, assemble, endpoints, plugin, request, response
from epp_plugins.filters.session_affinity import SessionAffinityFilter
from epp_plugins.filters.session_bindings import SessionBindings
from epp_plugins.scorers.session_affinity import SessionAffinityScorer


def token(key: str) -> str:
    return b64encode(key.encode()).decode()


def picked(candidates: epp.Endpoints, position: int, *, name: str = "default") -> epp.SchedulingResult:
    result = epp.ProfileResult(
        profile=name,
        picked=(candidates[position],),
        rows=(int(candidates.rows[position]),),
        candidates=candidates,
        scores=candidates.waiting,
    )
    return epp.SchedulingResult(primary=name, profiles={name: result})


class TestToken:
    def test_the_response_names_the_endpoint_and_the_next_request_goes_there(self) -> None:
        candidates = endpoints(3)
        affinity = plugin(SessionAffinityFilter, table=candidates.table)
        first = request()
        assert affinity.filter(first, candidates).tolist() == [True, True, True]
        affinity.on_picked(first, picked(candidates, 1))
        answer = response()
        affinity.on_response_headers(first, answer)
        assert answer.set_headers == {"x-session-token": "ZGVmYXVsdC9wb2QtMS1yYW5rLTA="}  # default/pod-1-rank-0

        second = request(headers={"X-Session-Token": answer.set_headers["x-session-token"]})
        assert affinity.filter(second, candidates).tolist() == [False, True, False]

    def test_scorer_prefers_and_does_not_insist(self) -> None:
        candidates = endpoints(3)
        scorer = plugin(SessionAffinityScorer, table=candidates.table)
        asked = request(headers={"x-session-token": token("default/pod-2-rank-0")})
        assert scorer.score(asked, candidates).tolist() == [0.0, 0.0, 1.0]
        assert scorer.score(request(), candidates).tolist() == [0.0, 0.0, 0.0]

    def test_position_is_among_the_candidates_not_in_the_table(self) -> None:
        everybody = endpoints(4)
        scorer = plugin(SessionAffinityScorer, table=everybody.table)
        asked = request(headers={"x-session-token": token("default/pod-2-rank-0")})
        assert scorer.score(asked, everybody.take([3, 2])).tolist() == [0.0, 1.0]

    @pytest.mark.parametrize(
        "value", ["", "%%%", "YQ", "/w==", token("default/gone"), token(""), "ZGVm YXVsdA==", "x" * 10_000, "\u00e4"]
    )
    def test_unreadable_or_foreign_tokens_leave_everybody(self, value: str) -> None:
        candidates = endpoints(2)
        affinity = plugin(SessionAffinityFilter, table=candidates.table)
        assert affinity.filter(request(headers={"x-session-token": value}), candidates).all()

    def test_endpoint_that_is_no_candidate_leaves_everybody(self) -> None:
        everybody = endpoints(3)
        affinity = plugin(SessionAffinityFilter, table=everybody.table)
        asked = request(headers={"x-session-token": token("default/pod-0-rank-0")})
        assert affinity.filter(asked, everybody.take([1, 2])).tolist() == [True, True]

    def test_endpoint_that_went_away_and_came_back_elsewhere(self) -> None:
        everybody = endpoints(2)
        table = everybody.table
        affinity = plugin(SessionAffinityFilter, table=table)
        asked = request(headers={"x-session-token": token("default/pod-0-rank-0")})
        assert affinity.filter(asked, everybody).tolist() == [True, False]
        table.remove("10.0.0.1:8000")
        assert affinity.filter(asked, table.all(1000.0)).tolist() == [True]
        row = table.add(epp.Endpoint(name="pod-0-rank-0", address="10.9.9.9", port=8000))
        now = table.all(1000.0)
        assert now.rows[affinity.filter(asked, now)].tolist() == [row]

    def test_own_header_name(self) -> None:
        candidates = endpoints(2)
        affinity = plugin(
            SessionAffinityFilter, {"encodedEndpointHeaderConfig": {"header": " X-Mine "}}, table=candidates.table
        )
        asked = request(headers={"x-mine": token("default/pod-1-rank-0")})
        assert affinity.filter(asked, candidates).tolist() == [False, True]
        affinity.on_picked(asked, picked(candidates, 0))
        answer = response()
        affinity.on_response_headers(asked, answer)
        assert answer.set_headers == {"x-mine": token("default/pod-0-rank-0")}

    def test_token_names_who_answered(self) -> None:
        candidates = endpoints(3)
        affinity = plugin(SessionAffinityFilter, table=candidates.table)
        asked = request()
        affinity.on_picked(asked, picked(candidates, 1))
        for served, key in (("10.0.0.3:8000", "default/pod-2-rank-0"), ("10.7.7.7:1", "default/pod-1-rank-0")):
            answer = response(served=served)
            affinity.on_response_headers(asked, answer)
            assert answer.set_headers == {"x-session-token": token(key)}

    def test_profile_of_its_own(self) -> None:
        candidates = endpoints(3)
        prefill = plugin(
            SessionAffinityScorer,
            {"profileName": "prefill", "encodedEndpointHeaderConfig": {"header": "x-session-token-prefill"}},
            table=candidates.table,
        )
        result = picked(candidates, 0, name="decode")
        result.profiles |= picked(candidates, 2, name="prefill").profiles
        asked = request()
        prefill.on_picked(asked, result)
        answer = response(served="10.0.0.1:8000")
        prefill.on_response_headers(asked, answer)
        assert answer.set_headers == {"x-session-token-prefill": token("default/pod-2-rank-0")}

        without = request()
        prefill.on_picked(without, picked(candidates, 0, name="decode"))
        untouched = response()
        prefill.on_response_headers(without, untouched)
        assert untouched.set_headers == {}

    def test_needs_nobody_and_says_its_strategy(self) -> None:
        affinity = plugin(SessionAffinityFilter)
        assert list(affinity.consumes) == list(affinity.consumes_if_present) == []
        assert affinity.dump_state() == {"strategy": "encoded_endpoint_header"}


SESSION_ID = {"strategy": "session_id"}


class TestSessionId:
    def made(self, candidates: epp.Endpoints, clock: ManualClock, **config: Any) -> SessionAffinityFilter:
        parameters = SESSION_ID | ({"sessionIdConfig": config} if config else {})
        return plugin(SessionAffinityFilter, parameters, table=candidates.table, clock=clock)

    def go(self, affinity: SessionAffinityFilter, candidates: epp.Endpoints, position: int, session: str = "s") -> None:
        asked = request(headers={"x-session-id": session})
        affinity.filter(asked, candidates)
        affinity.on_picked(asked, picked(candidates, position))

    def test_first_request_binds_and_nothing_is_written_back(self) -> None:
        candidates, clock = endpoints(3), ManualClock()
        affinity = self.made(candidates, clock)
        first = request(headers={"x-session-id": "s"})
        assert affinity.filter(first, candidates).all()
        affinity.on_picked(first, picked(candidates, 2))
        answer = response()
        affinity.on_response_headers(first, answer)
        assert answer.set_headers == {}
        assert affinity.filter(request(headers={"x-session-id": "s"}), candidates).tolist() == [False, False, True]
        assert affinity.filter(request(headers={"x-session-id": "other"}), candidates).all()
        assert affinity.filter(request(), candidates).all()
        assert affinity.dump_state() == {"strategy": "session_id", "sessions": 1}

    def test_expires_after_the_last_use(self) -> None:
        candidates, clock = endpoints(2), ManualClock()
        affinity = self.made(candidates, clock, evictionTtlSeconds=10, evictionSweepSeconds=1)
        self.go(affinity, candidates, 1)
        clock.advance(9)
        self.go(affinity, candidates, 1)
        clock.advance(9)
        assert affinity.filter(request(headers={"x-session-id": "s"}), candidates).tolist() == [False, True]
        clock.advance(1.1)
        assert affinity.filter(request(headers={"x-session-id": "s"}), candidates).all()

    def test_moves_only_when_its_endpoint_could_not_be_had(self) -> None:
        candidates, clock = endpoints(3), ManualClock()
        scorer = plugin(SessionAffinityScorer, SESSION_ID, table=candidates.table, clock=clock)

        def go(among: epp.Endpoints, position: int) -> list[float]:
            asked = request(headers={"x-session-id": "s"})
            scores = scorer.score(asked, among)
            scorer.on_picked(asked, picked(among, position))
            return scores.tolist()

        assert go(candidates, 1) == [0, 0, 0]
        assert go(candidates, 2) == [0, 1, 0]  # outvoted: the session still belongs to the second
        assert go(candidates.take([0, 2]), 1) == [0, 0]  # not there: the session moves to the third
        assert go(candidates, 2) == [0, 0, 1]

    def test_first_source_with_an_id_wins(self) -> None:
        candidates, clock = endpoints(3), ManualClock()
        affinity = self.made(
            candidates,
            clock,
            sources=[
                {"header": "X-Conversation"},
                {"attribute": "SessionIDDataKey"},
                {"attribute": "agent-identity", "producer": "agents"},
            ],
        )
        keys = [
            epp.DataKey("SessionIDDataKey", "session-id-producer"),
            epp.DataKey("agent-identity", "agents"),
        ]
        assert list(affinity.consumes_if_present) == keys
        by_header = request(headers={"x-conversation": " a "})
        affinity.on_picked(by_header, picked(candidates, 0))
        by_attribute = request(headers={"x-conversation": "  "})
        by_attribute.attributes[keys[0]] = "b"
        by_attribute.attributes[keys[1]] = "c"
        affinity.on_picked(by_attribute, picked(candidates, 1))

        again = request()
        again.attributes[keys[1]] = "b"
        assert affinity.filter(again, candidates).tolist() == [False, True, False]
        again.attributes[keys[0]] = "a"
        assert affinity.filter(again, candidates).tolist() == [True, False, False]
        again.attributes[keys[0]] = 17
        assert affinity.filter(again, candidates).tolist() == [False, True, False]

    def test_without_a_session_nothing_is_remembered(self) -> None:
        candidates, clock = endpoints(2), ManualClock()
        affinity = self.made(candidates, clock)
        affinity.on_picked(request(), picked(candidates, 0))
        assert affinity.dump_state()["sessions"] == 0

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({}, "exactly one of header and attribute must be set, neither is"),
            ({"header": "a", "attribute": "b"}, "both are"),
            ({"header": "a", "producer": "b"}, "producer belongs to an attribute"),
        ],
    )
    def test_sources_are_checked(self, source: dict[str, str], message: str) -> None:
        with pytest.raises(epp.ConfigError, match=message):
            plugin(SessionAffinityFilter, SESSION_ID | {"sessionIdConfig": {"sources": [source]}})

    def test_with_its_producer_in_a_configuration(self) -> None:
        made = assemble(
            """
            plugins:
            - type: session-id-producer
              parameters: {cookieName: sid}
            - type: session-affinity-filter
              parameters:
                strategy: session_id
                sessionIdConfig: {sources: [{attribute: SessionIDDataKey}]}
            - type: random-picker
            schedulingProfiles:
            - name: default
              plugins: [{pluginRef: session-affinity-filter}, {pluginRef: random-picker}]
            """
        )
        candidates = endpoints(8, table=made.table)
        chosen = {
            made.schedule(request(headers={"cookie": "sid=abc"}), candidates).target.picked[0].key for _ in range(20)
        }
        assert len(chosen) == 1


class TestBindings:
    def test_bounded(self) -> None:
        bindings = SessionBindings(ttl=100, sweep=10, clock=ManualClock(), limit=3)
        for session in "abcd":
            bindings.bind(session, f"default/{session}")
        assert [bindings.get(session) for session in "abcd"] == [None, "default/b", "default/c", "default/d"]
        bindings.bind("b", "default/b")
        bindings.bind("e", "default/e")
        assert bindings.get("b") == "default/b"
        assert bindings.get("c") is None
        assert len(bindings) == 3

    def test_sweep_clears_what_has_expired(self) -> None:
        clock = ManualClock()
        bindings = SessionBindings(ttl=10, sweep=5, clock=clock)
        for session in "abc":
            bindings.bind(session, "default/x")
            clock.advance(4)
        clock.advance(3)  # a and b are 15 and 11 seconds old, c 7
        bindings.bind("d", "default/x")
        assert len(bindings) == 2
        assert bindings.get("c") == "default/x"

    def test_bounded_also_when_it_sweeps(self) -> None:
        clock = ManualClock()
        bindings = SessionBindings(ttl=100, sweep=1, clock=clock, limit=2)
        for session in "abcd":
            clock.advance(1)
            bindings.bind(session, "default/x")
        assert [session for session in "abcd" if bindings.get(session)] == ["c", "d"]

    def test_long_ids_cost_no_more(self) -> None:
        bindings = SessionBindings(ttl=100, sweep=10, clock=ManualClock())
        one, other = "x" * 5000 + "1", "x" * 5000 + "2"
        bindings.bind(one, "default/1")
        assert bindings.get(one) == "default/1"
        assert bindings.get(other) is None
        assert max(map(len, bindings._bound)) <= 128
