"""`--declarations-file`: objectives and rewrites without Kubernetes."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from epp.api.errors import ConfigError
from epp.cli import declarations_file
from epp.cli.declarations_file import DeclarationsFile, parse
from epp.director.objectives import ObjectiveTable
from epp.director.rewrites import RewriteTable
from epp.telemetry.exposition import render_now
from epp.telemetry.labels import MAX_VALUES
from epp.telemetry.metrics import Registry
from tests.kubernetes.manifests import ROOT
from tests.waiting import until

OBJECTIVE = "kind: InferenceObjective\nmetadata: {name: vip, labels: {team: a}}\nspec: {priority: %s}\n"
REWRITE = "kind: InferenceModelRewrite\nmetadata: {name: canary}\nspec: {rules: [%s]}\n"


@pytest.fixture
def tables() -> tuple[ObjectiveTable, RewriteTable]:
    return ObjectiveTable(), RewriteTable(random.Random(1))


async def test_the_file_is_followed(
    tables: tuple[ObjectiveTable, RewriteTable],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(declarations_file, "LOOK_SECONDS", 0.02)
    objectives, rewrites = tables
    path = tmp_path / "declarations.yaml"
    path.write_text(OBJECTIVE % 3 + "---\n" + REWRITE % "{targets: [{modelRewrite: small}]}" + "---\n")
    registry = Registry()
    followed = DeclarationsFile(path, objectives, rewrites, registry)
    await followed.start()
    assert (objectives.priority("vip"), rewrites.target("any")) == (3, "small")
    path.write_text(OBJECTIVE % -70)
    await until(lambda: objectives.priority("vip") == -70)
    assert rewrites.target("any") is None
    path.write_text("kind: Pod")
    await until(lambda: "is not used, the last good state stays" in caplog.text)
    path.unlink()
    await until(lambda: "No such file" in caplog.text)
    await asyncio.sleep(0.2)
    assert caplog.text.count("No such file") == 1
    assert "llm_d_epp_declarations_errors_total 2.0" in render_now(registry).decode()
    assert objectives.priority("vip") == -70
    path.write_text(OBJECTIVE % 5)
    await until(lambda: objectives.priority("vip") == 5)
    await followed.stop()
    await followed.stop()


def test_the_order_decides_where_age_would() -> None:
    both = REWRITE % "{targets: [{modelRewrite: first}]}" + "---\n"
    both += REWRITE.replace("canary", "a") % "{targets: [{modelRewrite: second}]}"
    table = RewriteTable(random.Random(1))
    table.replace(parse(both.encode())[1])
    assert table.target("any") == "first"


def test_what_ships_is_understood() -> None:
    objectives, rewrites = parse((ROOT / "deploy/kustomize/overlays/multi-lora/declarations.yaml").read_bytes())
    assert len(objectives) == 2
    assert len(rewrites) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "document 1: kind is None"),
        (OBJECTIVE % 1 + "---\nkind: Pod", "document 2: kind is 'Pod'"),
        (OBJECTIVE % 1 + "---\n" + OBJECTIVE % 2, "document 2: InferenceObjective vip is there twice"),
        (OBJECTIVE % "high", r"Expected `int \| null`, got `str` - at `\$.spec.priority`"),
        (OBJECTIVE % 3_000_000_000, "Expected `int` <= 2147483647"),
        ("apiVersion: v1\n" + OBJECTIVE % 1, "Invalid enum value 'v1'"),
        ((OBJECTIVE % 1).replace("priority", "priorty"), "unknown field `priorty`"),
        (REWRITE % "{targets: []}", "Expected `array` of length >= 1"),
        (REWRITE % "{targets: [{modelRewrite: a, weight: 0}]}", "Expected `int` >= 1"),
        (REWRITE % "{targets: [{model: a}]}", "unknown field `model`"),
        (REWRITE % "{targets: [{modelRewrite: a}], matches: [{}]}", "missing required field `model`"),
        (
            REWRITE % "{targets: [{modelRewrite: a}], matches: [{model: {type: Prefix, value: m}}]}",
            "Invalid enum value 'Prefix'",
        ),
    ],
)
async def test_what_is_wrong_is_said_at_the_start(
    tables: tuple[ObjectiveTable, RewriteTable], tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "declarations.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as error:
        await DeclarationsFile(path, *tables, Registry()).start()
    assert "--declarations-file" in str(error.value)


async def test_a_file_that_is_too_large(
    tables: tuple[ObjectiveTable, RewriteTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declarations_file, "MAX_BYTES", 10)
    (tmp_path / "large").write_text(OBJECTIVE % 1)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        await DeclarationsFile(tmp_path / "large", *tables, Registry()).start()


async def test_models_of_rewrites_keep_their_names_in_metrics(
    tables: tuple[ObjectiveTable, RewriteTable], tmp_path: Path
) -> None:
    path = tmp_path / "declarations.yaml"
    rule = "{matches: [{model: {type: Exact, value: asked}}], targets: [{modelRewrite: small}]}"
    path.write_text(REWRITE % rule)
    registry = Registry()
    followed = DeclarationsFile(path, *tables, registry)
    await followed.start()
    limit = registry.limiters["model"]
    for number in range(MAX_VALUES):
        limit(f"invented-{number}")
    assert [limit("small"), limit("asked"), limit("one-more")] == ["small", "asked", "other"]
    await followed.stop()
