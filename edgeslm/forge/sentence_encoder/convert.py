"""From the network to an int8 TFLite graph: weights per channel, activations quantised as they come.

The graph has one length: a shorter text is filled up, and costs as much as the longest. For ai-edge-litert only:
tflite-runtime 2.14 silently gives zeros for per-channel int8 layers.
"""

from __future__ import annotations

from pathlib import Path

import torch

from edgeslm.forge.sentence_encoder.network import SentenceEncoder


def convert(network: SentenceEncoder, path: Path, tokens: int) -> None:
    """Write the int8 graph `path` for texts of `tokens`; the float graph stays beside it as `<stem>.float.tflite`."""
    import litert_torch  # noqa: PLC0415
    from ai_edge_quantizer import qtyping, quantizer  # noqa: PLC0415

    float_path = path.with_suffix(".float.tflite")
    sample = {
        "input_ids": torch.zeros(1, tokens, dtype=torch.int32),
        "attention_mask": torch.ones(1, tokens, dtype=torch.int32),
    }
    litert_torch.convert(network, sample_kwargs=sample).export(str(float_path))
    worker = quantizer.Quantizer(str(float_path))
    for operation in (qtyping.TFLOperationName.FULLY_CONNECTED, qtyping.TFLOperationName.EMBEDDING_LOOKUP):
        worker.add_dynamic_config(
            regex=".*",
            operation_name=operation,
            num_bits=8,
            granularity=qtyping.QuantGranularity.CHANNELWISE,
        )
    worker.quantize().export_model(str(path), overwrite=True)
