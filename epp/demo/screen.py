"""What the demo shows: who got what and why. A table on a terminal, plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from epp.demo.conversation import Turn


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision of the picker. `scores`: server -> scorer -> score (before weights); `totals`: weighted sums.

    `prefill`: the server that reads the prompt, where that is another.
    """

    request_id: str
    server: str
    totals: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]
    prefill: str = ""

    def why(self) -> str:
        """The winner's scores beside those of the best other server."""
        others = {server: total for server, total in self.totals.items() if server != self.server}
        winner = f"{self.totals[self.server]:.2f} = {_terms(self.scores[self.server])}"
        if not others:
            return winner
        second = max(others, key=lambda server: others[server])
        return f"{winner}   next {second}: {others[second]:.2f} = {_terms(self.scores[second])}"


def _terms(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{scorer.removesuffix('-scorer')} {score:.2f}" for scorer, score in scores.items())


class Screen:
    """Prints as things happen; long lines are for wide terminals, nothing is cut in a pipe."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True)

    def step(self, text: str) -> None:
        """A stage of the set-up has been reached."""
        self.console.print(f"[dim]·[/dim] {text}" if self.console.is_terminal else text, highlight=False)

    def decided(self, turn: Turn, choice: Choice | None) -> None:
        """One answer, and why that server gave it."""
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
