"""Configurations of the kinds that llm-d-router and its guides ship load here, wherever their plugins exist."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import epp
from epp.config import load_file
from epp.registry import Catalog, build, contexts
from epp.telemetry.metrics import Registry

SAMPLES = sorted((Path(__file__).parents[2] / "data" / "config" / "samples").glob("*.yaml"))


def needs(sample: Path) -> set[str]:
    """Types that this version does not have, as the first line of the file declares."""
    first = sample.read_text().splitlines()[0]
    return (
        {kind.strip() for kind in first.removeprefix("# needs:").split(",")} if first.startswith("# needs:") else set()
    )


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_sample_loads(sample: Path) -> None:
    config = load_file(sample).config
    catalog = Catalog.load()
    factory = contexts(table=epp.EndpointTable(), clock=lambda: 0.0, rng=random.Random(1), metrics=Registry())
    assert {plugin.type for plugin in config.plugins} - set(catalog.types()) == needs(sample)
    if needs(sample):
        with pytest.raises(epp.ConfigError, match="unknown plugin type"):
            build(config, catalog, context_factory=factory, allow_experimental=True)
        return
    made = build(config, catalog, context_factory=factory, allow_experimental=True)
    assert not [warning for warning in made.warnings if "has no effect" in warning or "never used" in warning]
    assert [profile.name for profile in made.profiles] == [profile.name for profile in config.scheduling_profiles]
