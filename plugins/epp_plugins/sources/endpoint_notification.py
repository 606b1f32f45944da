"""`endpoint-notification-source`: stands for the endpoints that come, change and go.

What it does: names, in `dataLayer.sources`, who hears of endpoints. Endpoint extractors hear of them whether or not it
is there; it is accepted so that configurations that name it work unchanged.

When to use it: with extractors of your own that keep something per endpoint (`epp.EndpointExtractor`), to say so in the
configuration; configurations for the precise prefix cache have it.

Parameters: none. Metrics: `datalayer_extract_errors_total{source_type, extractor_type}`. Failure: what an extractor
raises is counted and logged once a minute; the others hear of the endpoint all the same.
"""

from __future__ import annotations

from epp.api import EndpointSource, NoParams


class EndpointNotificationSource(EndpointSource[NoParams]):
    """Endpoints that come, change and go."""

    type = "endpoint-notification-source"
