"""Configuration files: YAML or JSON in, the resolved YAML out.

YAML from people is data from outside: aliases (the alias bomb) and duplicate keys are refused, the size is capped,
and types are checked by `RunConfig`, so that `no`, `1e-4` or `12:30` never pass as something else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from opd_core.config import RunConfig, grouped, parse_config
from opd_core.errors import ConfigError
from opd_core.safe_open import read_regular
from opd_core.types import clean_text

MAX_CONFIG_BYTES = 1_000_000
PLAIN_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, duplicate keys and numbers that are not written as one would say them."""

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

    def construct_plain_number(self, node: yaml.ScalarNode) -> float:
        """YAML 1.1 reads 12:30 as 750, 010 as 8 and thousands of digits until Python refuses."""
        text = self.construct_scalar(node)
        if node.tag.endswith(":int") and PLAIN_INTEGER.fullmatch(text):
            return int(text)
        if node.tag.endswith(":float") and ":" not in text:
            return self.construct_yaml_float(node)
        problem = f"{clean_text(text, 40)!r} is not a number in plain digits; put a text in quotes"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _StrictLoader.construct_plain_number)


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
    except (ValueError, AttributeError) as error:  # a tag or a date whose value is not one
        raise ConfigError(f"{name} is not valid YAML: {clean_text(str(error), 100)}.") from error


def to_yaml(config: RunConfig) -> str:
    """The complete grouped YAML of a configuration; `parse_config` of it gives the same configuration."""
    data = json.loads(json.dumps(grouped(config)))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
