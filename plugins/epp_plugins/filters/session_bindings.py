"""Which session is bound to which endpoint: bounded, and forgotten when a session has not been seen for a while."""

from __future__ import annotations

from hashlib import blake2b

import epp

MAX_SESSIONS = 100_000
"""Sessions remembered at most (about 30 MB); beyond it the one that was used longest ago goes."""

_LONG_ID = 128


class SessionBindings:
    """Session id -> endpoint key (`namespace/name`).

    A binding ends `ttl` seconds after its last use. Expired ones are never returned, and are cleared away at most
    every `sweep` seconds when a session is bound, so that no timer is needed.
    """

    def __init__(self, ttl: float, sweep: float, clock: epp.Clock, *, limit: int = MAX_SESSIONS) -> None:
        self._ttl = ttl
        self._sweep = sweep
        self._clock = clock
        self._limit = limit
        self._swept = clock()
        # In the order of last use, so that what has expired stands at the front.
        self._bound: dict[str, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._bound)

    def get(self, session: str) -> str | None:
        """The key of the endpoint that the session is bound to; None when it is not bound, or no longer."""
        found = self._bound.get(_short(session))
        if found is None or self._clock() - found[1] > self._ttl:
            return None
        return found[0]

    def bind(self, session: str, key: str) -> None:
        """Bind a session, or note that it was used."""
        now = self._clock()
        session = _short(session)
        self._bound.pop(session, None)
        self._bound[session] = (key, now)
        if now - self._swept >= self._sweep:
            self._clear_expired(now)
        elif len(self._bound) > self._limit:
            del self._bound[next(iter(self._bound))]

    def _clear_expired(self, now: float) -> None:
        self._swept = now
        expired = 0
        for _, used in self._bound.values():
            if now - used <= self._ttl:
                break
            expired += 1
        for session in list(self._bound)[: max(expired, len(self._bound) - self._limit)]:
            del self._bound[session]


def _short(session: str) -> str:
    """A client chooses its id: a long one must not cost more memory than another."""
    return session if len(session) <= _LONG_ID else blake2b(session.encode(), digest_size=32).hexdigest()
