"""One file of rules as data, with the line on which everything in it stands.

What YAML is read, and how a fault in it is told: :mod:`edgeslm.yaml_lines`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeslm.errors import RuleFileError
from edgeslm.schema.rule import RuleFile
from edgeslm.yaml_lines import Location, YamlSourceOf, read_yaml

__all__ = ["Location", "Source", "parse"]


@dataclass(frozen=True)
class Source:
    """A file, and where in it everything stands."""

    name: str
    file: RuleFile
    yaml: YamlSourceOf[RuleFileError]

    def error(self, where: Location, message: str, nearest: str | None = None) -> RuleFileError:
        """What is wrong at `where`."""
        return self.yaml.error(where, message, nearest)


def parse(name: str, body: bytes) -> Source:
    """The file of that name and body.

    Raises:
        RuleFileError: no YAML of that part, an unknown key, or a wrong value, each with its line.
    """
    source = read_yaml(name, body, fault=RuleFileError, needs="rules")
    return Source(name, source.validate(RuleFile), source)
