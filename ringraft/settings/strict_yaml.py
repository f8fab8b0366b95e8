"""YAML's safe subset, with nothing said twice."""

from __future__ import annotations

from typing import Any

import yaml


class _NoRepeats(yaml.SafeLoader):
    """YAML's safe subset; a key that stands twice in a map is refused instead of silently winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, str | int) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} stands in line {seen[key]} and again in line {line}")
            if isinstance(key, str | int):
                seen[key] = line
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str) -> Any:
    """The value of one YAML document. ValueError says what is wrong and where."""
    try:
        loader = _NoRepeats(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
