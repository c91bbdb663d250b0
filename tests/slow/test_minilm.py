"""The package that `make model-minilm` builds of all-MiniLM-L6-v2, asked as a device asks it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgeslm.models.store import ModelStore
from edgeslm.runtime.graph_model import GraphModel
from edgeslm.runtime.loading import load_served
from edgeslm.schema.message import PromptRequest

pytestmark = pytest.mark.slow
BUILT = os.environ.get("EDGESLM_MINILM")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> GraphModel:
    if BUILT is None:
        pytest.skip("EDGESLM_MINILM names no built package; run make test-minilm")
    store = ModelStore(tmp_path_factory.mktemp("store"))
    model = load_served(store.install(Path(BUILT) / "all-minilm-l6-v2.slm"))
    assert isinstance(model, GraphModel)
    return model


def embed(encoder: GraphModel, text: str) -> np.ndarray:
    found = encoder.infer(PromptRequest(id="t", task="embed", prompt=text)).embedding
    assert found is not None
    return np.array(found)


def test_the_int8_vectors_are_those_of_the_float_encoder(encoder: GraphModel) -> None:
    report = json.loads((Path(str(BUILT)) / "evaluation.json").read_text("utf-8"))
    assert report["sentences"] >= 100
    assert report["cosine_min"] > 0.98
    assert report["cosine_mean"] > 0.99
    assert report["neighbours_right"] > report["neighbours_right_float"] - 0.03


def test_what_means_the_same_is_near_and_what_does_not_is_far(encoder: GraphModel) -> None:
    asked = embed(encoder, "It is far too hot where the tomatoes grow.")
    same = embed(encoder, "Open the vents of the greenhouse.")
    other = embed(encoder, "The invoice of March has not been paid.")
    assert np.linalg.norm(asked) == pytest.approx(1, abs=1e-5)
    assert asked @ same > asked @ other + 0.2
