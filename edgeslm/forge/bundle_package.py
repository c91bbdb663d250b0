"""A package around a ``.litertlm`` bundle: its golden text is computed here, once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import edgeslm
from edgeslm.errors import ModelLoadError
from edgeslm.runtime.litert_lm_bundle import Bundle, greedy_text, litert_lm_runtime
from edgeslm.schema.package import BUNDLE

SUFFIX = ".litertlm"
PROOF_PROMPT = "The capital of France is"
_PROOF_TOKENS = 16
_PROOF_SHARE = 2
"""The first half of the text has to come again: later on a near tie may fall otherwise on another processor."""
_ANSWER_SHARE = 4
_MIB = 2**20


def draft_bundle(bundle: Path, *, name: str, version: str, license_name: str) -> dict[str, Any]:
    """The draft of a manifest for :func:`edgeslm.models.packing.pack`, whose one member is `bundle`.

    Args:
        license_name: SPDX identifier of the model's licence.

    Raises:
        RuntimeMissingError: LiteRT-LM is not installed.
        ModelLoadError: it takes no such bundle, or says nothing.
        InferenceError: it fails.
    """
    runtime = litert_lm_runtime()
    opened = Bundle(bundle, runtime, threads=1, context_tokens=0, cache_dir=None)
    text = greedy_text(opened, PROOF_PROMPT, _PROOF_TOKENS)
    start = text[: max(1, len(text) // _PROOF_SHARE)]
    if not start.strip():
        raise ModelLoadError(f"{bundle.name} says nothing to '{PROOF_PROMPT}'", path=str(bundle))
    context = opened.context_tokens
    answer = max(1, context // _ANSWER_SHARE)
    proof = {"prompt": PROOF_PROMPT, "text": start, "max_tokens": _PROOF_TOKENS}
    return {
        "format": 1,
        "name": name,
        "version": version,
        "task": "generate",
        "description": f"A LiteRT-LM bundle that answers in text, within {context} tokens.",
        "graphs": [
            {"file": bundle.name, "runtimes": [BUNDLE], "quantization": "as in the bundle", "proof": proof}
        ],
        "context_tokens": context,
        "max_prompt_tokens": context - answer,
        "max_answer_tokens": answer,
        "requires": {
            "ram_mb": math.ceil(2 * bundle.stat().st_size / _MIB),
            "agent": edgeslm.__version__,
        },
        "licenses": [{"spdx": license_name, "of": bundle.name}],
    }
