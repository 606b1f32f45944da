"""What the demo shows: who got what and why. A table on a terminal, plain lines in a pipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from epp.demo.conversation import Turn


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision of the picker. `scores`: server -> scorer -> score (before weights); `totals`: weighted sums.

    `weights` of scorers (1.0 where none is named). `prefill`: the server that reads the prompt, where that is another.
    """

    request_id: str
    server: str
    totals: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, float] = field(default_factory=dict)
    prefill: str = ""

    def why(self) -> str:
        """The winner's weighted scores beside those of the best other server that the filters left."""
        others = {server: total for server, total in self.totals.items() if server != self.server}
        if not others:
            return f"{self._sum(self.server)}   no other candidate"
        return (
            f"{self._sum(self.server)}   next {self._sum(max(others, key=lambda server: others[server]), named=True)}"
        )

    def _sum(self, server: str, *, named: bool = False) -> str:
        terms = [_term(scorer, score, self.weights.get(scorer, 1.0)) for scorer, score in self.scores[server].items()]
        total = f"{server}: {self.totals[server]:.2f}" if named else f"{self.totals[server]:.2f}"
        return f"{total} = {' + '.join(terms)}" if terms else f"{total} (no scorer)"


def _term(scorer: str, score: float, weight: float) -> str:
    times = "" if weight == 1 else f"{weight:g} x "
    return f"{scorer.removesuffix('-scorer')} {times}" + ("no data" if math.isnan(score) else f"{score:.2f}")


class Screen:
    """Prints as things happen; long lines are for wide terminals, nothing is cut in a pipe."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True)

    def step(self, text: str) -> None:
        """A stage of the set-up has been reached."""
        self.console.print(f"[dim]·[/dim] {text}" if self.console.is_terminal else text, highlight=False)

    def decided(self, turn: Turn, choice: Choice | None) -> None:
        """One answer, and why that server gave it; or why there is none."""
        if turn.error:
            server = f" from [bold]{choice.server}[/bold]" if choice else ""
            self.console.print(f"{turn.user:<9} turn {turn.number} -> {turn.status}{server}  ", end="", highlight=False)
            self.console.print(turn.error, markup=False, highlight=False)
            return
        server = choice.server if choice else "?"
        reader = f" (read by {choice.prefill})" if choice and choice.prefill else ""
        cached = f"{turn.cached} of {turn.prompt} tokens cached"
        line = f"{turn.user:<9} turn {turn.number} -> [bold]{server}[/bold]{reader}  {cached:<26}"
        self.console.print(line + f" first token {turn.first_token * 1000:4.0f} ms", highlight=False)
        if choice:
            self.console.print(f"          [dim]{choice.why()}[/dim]", highlight=False)

    def routed(self, choice: Choice) -> None:
        """A request of somebody else."""
        reader = f" (read by {choice.prefill})" if choice.prefill else ""
        where = f"[bold]{choice.server}[/bold]{reader}"
        self.console.print(f"request {choice.request_id} -> {where}  [dim]{choice.why()}[/dim]")


SUMMARY = ("server", "requests", "tokens from cache", "users")


def summary(servers: Sequence[str], turns: Sequence[Turn], choices: Mapping[str, Choice]) -> list[tuple[str, ...]]:
    """Where everything went: a row per server, under the headings of `SUMMARY`."""
    rows: list[tuple[str, ...]] = []
    for server in servers:
        mine = [turn for turn in turns if (c := choices.get(turn.request_id)) and c.server == server]
        prompt, cached = sum(turn.prompt for turn in mine), sum(turn.cached for turn in mine)
        share = f"{cached} of {prompt}" if mine else ""
        users = ", ".join(sorted({turn.user for turn in mine}))
        read = [turn.user for turn in turns if (c := choices.get(turn.request_id)) and c.prefill == server]
        if read:
            users = f"{len(read)} prompt{'s' * (len(read) > 1)} read for {', '.join(sorted(set(read)))}"
        rows.append((server, str(len(mine)), share, users))
    return rows
