"""What every open model is, whatever computes it: a package, a graph of it, and a runtime."""

from __future__ import annotations

from edgeslm.runtime.backend import Runtime
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import GraphSpec


class Opened:
    """A package with the graph that is in use.

    Attributes:
        installed: the package.
        runtime: what computes it.
        graph: the graph in use.
    """

    installed: InstalledPackage
    runtime: Runtime
    graph: GraphSpec

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.installed.manifest.name}@{self.installed.manifest.version}"

    @property
    def graph_file(self) -> str:
        """The graph in use."""
        return self.graph.file

    @property
    def runtime_name(self) -> str:
        """The runtime that computes it, with version."""
        return str(self.runtime)
