"""Configuration files: YAML or JSON in, the resolved YAML out.

YAML from people is data from outside: aliases (the alias bomb) and duplicate keys are refused, the size is capped,
and types are checked by `RunConfig`, so that `no`, `1e-4` or `12:30` never pass as something else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from opd_core.config import RunConfig, grouped, parse_config
from opd_core.errors import ConfigError
from opd_core.safe_open import read_regular

MAX_CONFIG_BYTES = 1_000_000


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> RunConfig:
    """Load a configuration file (.yaml, .yml or .json), flat or grouped.

    Raises:
        ConfigError: the file is missing, too large, not valid, or holds a wrong configuration.
    """
    try:
        text = read_regular(path, MAX_CONFIG_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"The configuration file {path} cannot be read: {reason}. Give a .yaml or .json file."
        ) from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(
            f"The configuration file {path} must hold a mapping of settings, not a {type(data).__name__}."
        )
    return parse_config(data)


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML (of which JSON is a part) with aliases, duplicate keys and deep nesting refused."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name} is not valid YAML{where}: {getattr(error, 'problem', None) or error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{name} is nested too deeply to be a configuration.") from error


def to_yaml(config: RunConfig) -> str:
    """The complete grouped YAML of a configuration; `parse_config` of it gives the same configuration."""
    data = json.loads(json.dumps(grouped(config)))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
