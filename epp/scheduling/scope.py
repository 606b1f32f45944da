"""A plugin touches the data keys that it declared, and no others.

A key that is not declared reads as absent, and writing one fails the hook; both are counted. Without this a scorer that
forgot `consumes` works as long as somebody else happens to bring its producer along, and scores nothing afterwards.

Plugins that ship are checked against their declarations by the test suite and run as they are: the way of a request
pays nothing. The hooks of every other plugin get a view of the request's attributes and of the candidates' columns
that knows the declarations, which costs two to three microseconds per hook.

A key whose producer is the plugin itself is the plugin's own to write and read: what it keeps between two hooks of a
request. Columns by name (`waiting`, `inflight_tokens`, ...) are no data keys, and are there for everybody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any, cast

import numpy as np

from epp.api.endpoints import BoolArray, Endpoints, FloatArray, IntArray
from epp.api.keys import ANY_PRODUCER, TOKENIZED_PROMPT, DataKey
from epp.api.plugin import Plugin
from epp.api.prefix import declared_as
from epp.api.request import InferenceRequest

SHIPPED = ("epp_plugins.",)
"""Modules whose plugins the test suite has checked."""

_REMEMBERED = 64

Violated = Callable[[str, DataKey], None]
"""Hears of `read` or `write`, and the key."""


class UndeclaredWrite(Exception):
    """A hook wrote a data key that its plugin does not declare in `produces`."""


class DataScope:
    """What one plugin declared. `violated` is called for every access to something else."""

    def __init__(self, plugin: Plugin[Any], violated: Violated) -> None:
        self._name = plugin.name
        self._made = frozenset(plugin.produces)
        self._read = frozenset((*plugin.consumes, *plugin.consumes_if_present)) | self._made
        self._readable: set[DataKey] = set()  # known to be, of at most `_REMEMBERED`
        self._makes_prompt = any(key.type == TOKENIZED_PROMPT for key in self._made)
        self._violated = violated

    def may_read(self, key: DataKey) -> bool:
        """Whether the key is declared, or the plugin's own."""
        declared = declared_as(key)
        return (
            declared in self._read
            or DataKey(declared.type, ANY_PRODUCER) in self._read
            or getattr(key, "producer", None) == self._name
        )

    def reading(self, key: DataKey) -> bool:
        """As `may_read`; a no is counted."""
        if key in self._readable:
            return True
        if self.may_read(key):
            if len(self._readable) < _REMEMBERED:
                self._readable.add(key)
            return True
        self._violated("read", key)
        return False

    def writing(self, key: DataKey) -> None:
        """Raises `UndeclaredWrite`, and counts it."""
        if declared_as(key) not in self._made and getattr(key, "producer", None) != self._name:
            self._refuse(key, "a key whose producer is the plugin itself needs no declaration")

    def guard(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook, with views of its request and its candidates; an awaitable that it returns gets them too."""

        def scoped(request: InferenceRequest, *others: Any) -> Any:
            prompt, attributes = request.prompt, request.attributes
            request.attributes = cast("dict[DataKey, Any]", ScopedAttributes(attributes, self))
            try:
                result = hook(request, *[self._candidates(other) for other in others])
                waits = hasattr(result, "__await__")
            finally:
                request.attributes = attributes
            if waits:
                return self._awaited(request, result)
            if request.prompt is not prompt:
                self._check_prompt(request, prompt)
            return result

        return scoped

    async def _awaited(self, request: InferenceRequest, waiting: Awaitable[Any]) -> Any:
        prompt, attributes = request.prompt, request.attributes
        request.attributes = cast("dict[DataKey, Any]", ScopedAttributes(attributes, self))
        try:
            result = await waiting
        finally:
            request.attributes = attributes
        self._check_prompt(request, prompt)
        return result

    def _candidates(self, argument: Any) -> Any:
        return ScopedEndpoints(argument, self) if type(argument) is Endpoints else argument

    def _check_prompt(self, request: InferenceRequest, before: Any) -> None:
        if request.prompt is not before and not self._makes_prompt:
            request.prompt = before
            self._refuse(DataKey(TOKENIZED_PROMPT, self._name), "`request.prompt` is what it stands for")

    def _refuse(self, key: DataKey, remark: str) -> None:
        self._violated("write", key)
        raise UndeclaredWrite(f"{self._name} writes {key}, which its `produces` does not name; {remark}")


class ScopedAttributes(MutableMapping[DataKey, Any]):
    """A request's attributes as one plugin sees them. Iterating shows what it may read, and counts nothing."""

    __slots__ = ("_all", "_scope")

    def __init__(self, attributes: dict[DataKey, Any], scope: DataScope) -> None:
        self._all = attributes
        self._scope = scope

    def __getitem__(self, key: DataKey) -> Any:
        if not self._scope.reading(key):
            raise KeyError(key)
        return self._all[key]

    def get(self, key: DataKey, default: Any = None) -> Any:
        return self._all.get(key, default) if self._scope.reading(key) else default

    def __contains__(self, key: object) -> bool:
        return self._scope.reading(cast("DataKey", key)) and key in self._all

    def __setitem__(self, key: DataKey, value: Any) -> None:
        self._scope.writing(key)
        self._all[key] = value

    def __delitem__(self, key: DataKey) -> None:
        self._scope.writing(key)
        del self._all[key]

    def __iter__(self) -> Iterator[DataKey]:
        return iter([key for key in self._all if self._scope.may_read(key)])

    def __len__(self) -> int:
        return sum(map(self._scope.may_read, self._all))


class ScopedEndpoints(Endpoints):
    """Candidates as one plugin sees them: the same rows and columns, but for keys that it does not declare."""

    __slots__ = ("_scope",)

    def __init__(self, endpoints: Endpoints, scope: DataScope) -> None:
        self.table = endpoints.table
        self.rows = endpoints.rows
        self.now = endpoints.now
        self._cache = endpoints._cache
        self._scope = scope

    def column(self, name: str | DataKey) -> FloatArray:
        if isinstance(name, DataKey) and not self._scope.reading(name):
            raise LookupError(f"no column {name}: declare it in `consumes`, and its producer will run first")
        return super().column(name)

    def has(self, name: str | DataKey) -> bool:
        return (isinstance(name, str) or self._scope.reading(name)) and super().has(name)

    def set(self, name: str | DataKey, values: FloatArray) -> None:
        if isinstance(name, DataKey):
            self._scope.writing(name)
        super().set(name, values)

    def take(self, keep: BoolArray | IntArray | Sequence[int]) -> Endpoints:
        return ScopedEndpoints(super().take(np.asarray(keep)), self._scope)


def scoped(plugin: Plugin[Any], hook: Callable[..., Any], violated: Violated) -> Callable[..., Any]:
    """The hook as it is to be called: behind the plugin's scope, or as it is for a plugin that ships."""
    if type(plugin).__module__.startswith(SHIPPED):
        return hook
    return DataScope(plugin, violated).guard(hook)
