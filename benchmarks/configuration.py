"""What the measured pickers run: the default configuration, in which everything is on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from benchmarks import plugins
from epp.config.load import DEFAULT_CONFIG

PICK_AGES = "pick-ages"


def everything_on() -> dict[str, Any]:
    """Parsing, prefix index, three scorers, in-flight accounting; metrics and logs at info are on anyway."""
    config: dict[str, Any] = yaml.safe_load(DEFAULT_CONFIG)
    return config


def with_pick_ages() -> dict[str, Any]:
    """The same, and the plugin that notes how old values are at the pick."""
    config = everything_on()
    path = Path(plugins.__file__).with_name("pick_ages.py")
    config["plugins"].append({"name": PICK_AGES, "type": f"{path}:PickAges"})
    return config


def text(config: dict[str, Any]) -> str:
    """As a file holds it."""
    return yaml.safe_dump(config, sort_keys=False)
