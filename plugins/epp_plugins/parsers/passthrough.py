"""`passthrough-parser`: any body, not looked at.

What it does: lets every path through. Objective and fairness headers still work; whatever needs the prompt, the model
or usage has nothing to go by and says so (NaN scores, no token counts).

When to use: for APIs that no parser knows. It is the last of the default list of parsers; an explicit list without it
refuses unknown paths with 400. Parsers configured after it are never asked.

Parameters: none. Metrics: none of its own. Failure behaviour: never fails.
"""

from __future__ import annotations

from collections.abc import Mapping

from epp.api import NoParams, Parser, Payload


class PassthroughParser(Parser[NoParams]):
    """The fallback for every path."""

    type = "passthrough-parser"
    stability = "stable"
    paths = ()
    protocols = ()

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Payload:
        return Payload()
