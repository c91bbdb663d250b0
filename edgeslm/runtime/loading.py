"""Opening a package for whatever task it is made for."""

from __future__ import annotations

from pathlib import Path

from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.graph_model import GraphModel
from edgeslm.runtime.litert_lm import LiteRtLmModel, load_bundle
from edgeslm.runtime.model import GraphCheck, LoadedModel, load_model, open_first
from edgeslm.runtime.prefix_cache import PrefixPlace
from edgeslm.schema.config import RuntimeChoice
from edgeslm.schema.installed import InstalledPackage

ServedModel = LoadedModel | GraphModel | LiteRtLmModel


def load_served(
    installed: InstalledPackage,
    choice: RuntimeChoice = "auto",
    threads: int = 1,
    cache_dir: Path | None = None,
    check: GraphCheck | None = None,
    prefixes: PrefixPlace | None = None,
) -> ServedModel:
    """Open the first graph that this runtime is trusted with and that proves right.

    Args:
        choice: which runtime.
        threads: worker threads.
        cache_dir: where packed weights of generative models are kept between starts.
        check: asked before a graph is opened in this process (:meth:`edgeslm.runtime.trial.GraphTrial.check`).
        prefixes: where generative models keep states of prompts that begin alike.

    Raises:
        RuntimeMissingError: no runtime, no LiteRT-LM for a bundle, or none that the package has a graph for.
        ProofError: every suitable graph computes other values than the package states.
        ModelLoadError: no suitable graph can be opened; the first reason is told.
    """
    manifest = installed.manifest
    if manifest.is_bundle:
        return load_bundle(installed, threads, cache_dir, check)
    if manifest.task == "generate":
        return load_model(installed, choice, threads, cache_dir, check, prefixes)
    runtime = choose_runtime(choice)
    return open_first(installed, runtime, lambda graph: GraphModel(installed, runtime, graph, threads), check)
