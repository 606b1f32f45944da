"""`request-attribute-reporter`: reports a number computed from the token usage of an answer to the gateway.

What it does: at the end of a request it evaluates an expression over `usage` and puts the result into the dynamic
metadata of the last response message, where Envoy's filters, access logs and rate limits can read it.

When to use: to account, log or limit by tokens in the gateway.

Parameters: `attributes`, a list of
  `key.name`, `key.namespace` (default `envoy.lb`): where the number goes;
  `expression`: what it is, in the part of CEL that `cel.py` describes; a fraction is cut to a whole number;
  `condition` (optional): reported only where it is true.
Fields: `usage.prompt_tokens`, `usage.completion_tokens`, `usage.total_tokens`, and
`usage.prompt_tokens_details.cached_tokens` (also as `usage.prompt_token_details.cached_tokens`). As in llm-d-router
they are doubles: `usage.prompt_tokens / 3` keeps its fraction until the end. Unlike there, a field that the server did
not report is missing, not 0, and `has(...)` is false.

Metrics: none of its own. Failure behaviour: an expression that does not compile stops the start. One that fails for a
request (a field is missing, division by zero) reports nothing for that attribute; the failure is counted and logged
like that of any plugin, so use `condition` for what is to be expected.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from epp.api import InferenceRequest, InferenceResponse, Params, Plugin, PluginContext, Usage
from epp_plugins.requestcontrol.cel import CelError, Compiled, compile_expression, to_bool, to_int

DEFAULT_NAMESPACE = "envoy.lb"

FIELDS = {
    "usage": (
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "prompt_tokens_details.cached_tokens",
        "prompt_token_details",
        "prompt_token_details.cached_tokens",
    )
}

_NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class AttributeKey(Params, frozen=True):
    """Where in the dynamic metadata the number goes."""

    name: _NonEmpty
    namespace: str = DEFAULT_NAMESPACE


class Attribute(Params, frozen=True):
    """One number to report."""

    key: AttributeKey
    expression: _NonEmpty
    condition: str = ""

    def __post_init__(self) -> None:
        for field, text in (("expression", self.expression), ("condition", self.condition)):
            if text:
                try:
                    compile_expression(text, FIELDS)
                except CelError as error:
                    raise ValueError(f"{field} of {self.key.name}: {error}") from error


class RequestAttributeReporterParams(Params, frozen=True):
    """At least one attribute."""

    attributes: Annotated[tuple[Attribute, ...], msgspec.Meta(min_length=1)]


class RequestAttributeReporter(Plugin[RequestAttributeReporterParams]):
    """Writes to `response.metadata`."""

    type = "request-attribute-reporter"
    stability = "beta"
    Params = RequestAttributeReporterParams

    def __init__(self, params: RequestAttributeReporterParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._attributes: list[tuple[str, str, Compiled, Compiled | None]] = [
            (
                attribute.key.namespace or DEFAULT_NAMESPACE,
                attribute.key.name,
                compile_expression(attribute.expression, FIELDS),
                compile_expression(attribute.condition, FIELDS) if attribute.condition else None,
            )
            for attribute in params.attributes
        ]

    def on_response_end(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """Every attribute is tried, also after one has failed; the first failure is raised at the end."""
        variables = {"usage": usage_fields(response.usage)}
        failure: CelError | None = None
        for namespace, name, expression, condition in self._attributes:
            try:
                if condition is None or to_bool(condition(variables), "a condition"):
                    value = to_int(expression(variables))
                    response.metadata.setdefault(namespace, {})[name] = value
            except CelError as error:
                if failure is None:
                    failure = CelError(f"attribute {name}: {error}")
                    failure.__cause__ = error
        if failure is not None:
            raise failure


def usage_fields(usage: Usage) -> dict[str, Any]:
    """What an expression sees as `usage`: only what was reported."""
    counts = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    fields: dict[str, Any] = {name: float(count) for name, count in counts.items() if count is not None}
    if usage.cached_tokens is not None:
        details = {"cached_tokens": float(usage.cached_tokens)}
        fields["prompt_tokens_details"] = fields["prompt_token_details"] = details
    return fields
