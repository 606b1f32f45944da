"""One bad plugin never takes the pool down: run it, time it, and when it fails, count it and go on without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from epp.api.errors import RequestError
from epp.api.keys import DataKey
from epp.api.plugin import Clock, Plugin
from epp.scheduling.scope import scoped


class Child(Protocol):
    """A histogram's child."""

    def observe(self, value: float) -> None:
        """Count one value."""


class PluginTimings(Protocol):
    """Where durations and failures of plugins go."""

    def duration(self, extension_point: str, plugin_type: str, plugin_name: str) -> Child:
        """The histogram child of one plugin at one extension point, in seconds."""

    def failed(self, extension_point: str, plugin_type: str, plugin_name: str, error: BaseException) -> None:
        """Count a failure, and log it at most once a minute."""

    def violated(self, extension_point: str, plugin_type: str, plugin_name: str, access: str, key: DataKey) -> None:
        """Count an access (`read` or `write`) to a data key that the plugin does not declare; log it likewise."""


class Guarded:
    """One hook of one plugin, with its timing. `run` returns None when the plugin failed.

    `RequestError` is not a failure: it is how a plugin refuses a request, so it passes through. Everything else stays
    here, also what is no `Exception` (the `SystemExit` of a library's `sys.exit`, the `CancelledError` of a future): it
    would end the picker, and nothing cancels a hook while it runs. Only the operator's `KeyboardInterrupt` passes.
    """

    __slots__ = ("_clock", "_extension_point", "_failed", "_hook", "_observe", "_timings", "name", "plugin")

    def __init__(
        self, plugin: Plugin[Any], hook: Callable[..., Any], extension_point: str, timings: PluginTimings, clock: Clock
    ) -> None:
        self.plugin = plugin
        self.name = plugin.name
        self._hook = scoped(plugin, hook, self._violated)
        self._extension_point = extension_point
        self._timings = timings
        self._clock = clock
        self._observe = timings.duration(extension_point, plugin.type, plugin.name).observe
        self._failed = False

    # One `run` per number of arguments: packing them would cost as much as the rest of the call.

    def run(self, request: Any, about: Any) -> Any:
        """Call a hook of a request and one thing more: its candidates, its result or its response."""
        clock = self._clock
        began = clock()
        try:
            return self._hook(request, about)
        except BaseException as error:
            return self._contained(error)
        finally:
            self._observe(clock() - began)

    def run_alone(self, request: Any) -> Any:
        """Call a hook of nothing but a request."""
        clock = self._clock
        began = clock()
        try:
            return self._hook(request)
        except BaseException as error:
            return self._contained(error)
        finally:
            self._observe(clock() - began)

    def run_with(self, request: Any, about: Any, more: Any) -> Any:
        """Call a hook of a request and two things more."""
        clock = self._clock
        began = clock()
        try:
            return self._hook(request, about, more)
        except BaseException as error:
            return self._contained(error)
        finally:
            self._observe(clock() - began)

    def _contained(self, error: BaseException) -> None:
        """Called while `error` is handled: it goes on if it is meant to, and is counted if it is a failure."""
        if isinstance(error, (RequestError, KeyboardInterrupt)):
            raise error
        self.failed(error)
        self._failed = True

    def returned_nothing(self, expected: str) -> None:
        """`run` gave None where a result is needed: that is a failure too, unless it has been counted as one."""
        if not self._failed:
            self.failed(ValueError(f"it returned nothing, expected {expected}"))
        self._failed = False

    def failed(self, error: BaseException) -> None:
        """Count a failure that was noticed outside the call (a wrong shape, a time-out)."""
        self._timings.failed(self._extension_point, self.plugin.type, self.plugin.name, error)

    def _violated(self, access: str, key: DataKey) -> None:
        self._timings.violated(self._extension_point, self.plugin.type, self.plugin.name, access, key)


def overriding(plugins: list[Plugin[Any]], hook: str) -> list[Plugin[Any]]:
    """The plugins whose class overrides a hook of `Plugin`: only those are ever called."""
    return [plugin for plugin in plugins if getattr(type(plugin), hook) is not getattr(Plugin, hook)]
