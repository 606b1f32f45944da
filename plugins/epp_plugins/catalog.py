"""Every plugin that ships: `type` in the configuration file -> `module:Class`."""

CATALOG: dict[str, str] = {}
