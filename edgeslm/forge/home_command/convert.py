"""Conversion of `home-command` to its two int8 TFLite graphs.

* `home-command.tflite`: int8 weights per channel, activations quantized as they come. For ai-edge-litert.
* `home-command-tflite.tflite`: one scale per weight tensor, for tflite-runtime 2.14, which silently returns
  zeros for per-channel int8 layers.

Both are made of litert_torch's own layers without their composites (marks by which a runtime fuses a norm or an
attention): tflite-runtime can't load them, and at this size the fused operators are slower (2,360 against 2,770
tokens/s on one x86 thread) and keep more memory.

Both have the same signatures, tensor names, shapes and meaning:

* `prefill_N`: `tokens (1, N) int32`, `input_pos (N,) int32`, `mask (1, 1, N, context) float32` (0 where a
  token may look, `MASKED` elsewhere), `kv_cache_k_i`, `kv_cache_v_i` float32 -> the updated `kv_cache_*`;
  keys are `(1, heads, context, head_width)`, values `(1, heads, head_width, context)`;
* `decode`: the same with N = 1 -> `logits (1, 1, vocabulary) float32` and the updated `kv_cache_*`.

`input_pos` has to be consecutive, and `input_pos[0] + N <= context` has to hold for a padded chunk as well:
DYNAMIC_UPDATE_SLICE moves a slice that does not fit instead of failing.

Training and file layout belong to `train.py` and `recipe.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from edgeslm.forge.home_command.network import HomeCommandNetwork, NetworkConfig

_LOG = logging.getLogger(__name__)

PREFILL_LENGTHS: Final = (32,)
MASKED: Final = -1e9
"""Mask value of a place that may not be seen. Finite, because inf - inf in a softmax is not a number."""


def to_litert_model(network: HomeCommandNetwork, composites: bool) -> torch.nn.Module:
    """Return litert_torch's `DecoderOnlyModel` with the weights of the network.

    Args:
        network: the trained network.
        composites: whether RMSNorm and attention are marked for fusion.

    Returns:
        A model whose logits equal those of `network`.
    """
    _import_litert_layers()
    from litert_torch.generative.utilities.model_builder import DecoderOnlyModel  # noqa: PLC0415

    model: torch.nn.Module = DecoderOnlyModel(litert_config(network.config, composites)).eval()
    # Strict, so that a layer without a counterpart is an error and not a random weight.
    model.load_state_dict(_litert_state(network))
    return model


def litert_config(config: NetworkConfig, composites: bool) -> Any:
    """Return the litert_torch `ModelConfig` that describes the same network."""
    _import_litert_layers()
    from litert_torch.generative.layers import model_config as lt  # noqa: PLC0415

    norm = lt.NormalizationConfig(
        type=lt.NormalizationType.RMS_NORM, epsilon=config.norm_epsilon, enable_hlfb=composites
    )
    attention = lt.AttentionConfig(
        num_heads=config.head_count,
        head_dim=config.head_width,
        num_query_groups=config.head_count,
        rotary_base=config.rotary_base,
        rotary_percentage=1.0,
        qkv_transpose_before_split=True,
        query_norm_config=norm,
        key_norm_config=norm,
        causal_mask_value=MASKED,
    )
    feed_forward = lt.FeedForwardConfig(
        type=lt.FeedForwardType.GATED,
        activation=lt.ActivationConfig(lt.ActivationType.SILU),
        intermediate_size=config.inner_width,
    )
    block = lt.TransformerBlockConfig(
        attn_config=attention,
        ff_config=feed_forward,
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
    )
    return lt.ModelConfig(
        vocab_size=config.vocabulary_size,
        num_layers=config.layer_count,
        max_seq_len=config.context_tokens,
        embedding_dim=config.width,
        embedding_scale=config.embedding_scale,
        block_configs=block,
        final_norm_config=norm,
        enable_hlfb=composites,
    )


def convert(
    network: HomeCommandNetwork,
    path: Path,
    *,
    composites: bool,
    per_channel: bool,
    prefill_lengths: Sequence[int] = PREFILL_LENGTHS,
) -> None:
    """Write one int8 graph.

    Args:
        network: the trained network.
        path: the `.tflite` file to write; the float graph stays beside it as `<stem>.float.tflite`.
        composites: see `to_litert_model`.
        per_channel: one weight scale per output channel instead of one per tensor.
        prefill_lengths: chunk lengths that get a `prefill_N` signature.
    """
    float_path = path.with_suffix(".float.tflite")
    _export_float(to_litert_model(network, composites), float_path, prefill_lengths)
    _quantize(float_path, path, per_channel=per_channel)
    _LOG.info("%s: %.2f MB", path.name, path.stat().st_size / 1e6)


def convert_both(network: HomeCommandNetwork, directory: Path) -> tuple[Path, Path]:
    """Write `home-command.tflite` and `home-command-tflite.tflite`; return their paths."""
    litert, tflite = directory / "home-command.tflite", directory / "home-command-tflite.tflite"
    convert(network, litert, composites=False, per_channel=True)
    convert(network, tflite, composites=False, per_channel=False)
    return litert, tflite


def _litert_state(network: HomeCommandNetwork) -> dict[str, torch.Tensor]:
    """Return the weights under the names of `DecoderOnlyModel`."""
    source = network.state_dict()
    state = {
        "tok_embedding.weight": source["embedding.weight"],
        "lm_head.weight": source["embedding.weight"],
        "final_norm.weight": source["final_norm.weight"],
    }
    names = {
        "pre_atten_norm": "attention_norm",
        "atten_func.qkv_projection": "attention.qkv",
        "atten_func.output_projection": "attention.output",
        "atten_func.query_norm": "attention.query_norm",
        "atten_func.key_norm": "attention.key_norm",
        "post_atten_norm": "feed_forward_norm",
        "ff.w1": "feed_forward.gate",
        "ff.w3": "feed_forward.up",
        "ff.w2": "feed_forward.down",
    }
    for index in range(network.config.layer_count):
        for theirs, ours in names.items():
            state[f"transformer_blocks.{index}.{theirs}.weight"] = source[f"blocks.{index}.{ours}.weight"]
    return state


def _export_float(model: torch.nn.Module, path: Path, prefill_lengths: Sequence[int]) -> None:
    """Write the float graph with all signatures."""
    from litert_torch._convert import interface  # noqa: PLC0415
    from litert_torch.generative.layers import kv_cache  # noqa: PLC0415
    from litert_torch.generative.utilities import converter as signatures  # noqa: PLC0415
    from litert_torch.generative.utilities.export_config import ExportConfig  # noqa: PLC0415

    config: Any = model.config
    # Keys by position, values across it: neither product then transposes the cache (a quarter faster per
    # token under tflite-runtime 2.14, a few per cent under LiteRT).
    export = ExportConfig(mask_as_input=True, kvcache_layout=kv_cache.KV_LAYOUT_TRANSPOSED)
    converter = interface.Converter()
    # The public function only writes files under names of its own choosing, quantized by its own recipes.
    signatures._add_signatures(
        converter, model, list(prefill_lengths), config.max_seq_len, None, 0, config, [None], export
    )
    converter.convert().export(str(path))


def _quantize(float_path: Path, path: Path, *, per_channel: bool) -> None:
    """Turn weights into int8; activations stay float at the rims and are quantized inside each layer."""
    from ai_edge_quantizer import qtyping, quantizer  # noqa: PLC0415

    granularity = qtyping.QuantGranularity.CHANNELWISE if per_channel else qtyping.QuantGranularity.TENSORWISE
    worker = quantizer.Quantizer(str(float_path))
    for operation in (qtyping.TFLOperationName.FULLY_CONNECTED, qtyping.TFLOperationName.EMBEDDING_LOOKUP):
        worker.add_dynamic_config(regex=".*", operation_name=operation, num_bits=8, granularity=granularity)
    worker.quantize().export_model(str(path), overwrite=True)


def _import_litert_layers() -> None:
    """Import litert_torch's generative layers without TensorFlow.

    litert-torch 0.10.0 imports `tensorflow.lite.python.schema_py_generated` in `layers/lora.py`, for a table
    of flatbuffer classes that ai-edge-litert ships as well. That copy goes by TensorFlow's name while the
    module is imported and is then taken away, so that nothing later believes TensorFlow is installed.
    """
    wanted = "litert_torch.generative.layers.lora"
    if wanted in sys.modules or importlib.util.find_spec("tensorflow") is not None:
        return
    # Imported first: they probe for TensorFlow themselves and must not see the stand-in.
    importlib.import_module("torch._dynamo")
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    importlib.import_module("litert_torch.generative.layers.model_config")
    stand_ins = ("tensorflow", "tensorflow.lite", "tensorflow.lite.python")
    for name in stand_ins:
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[stand_ins[-1]])["schema_py_generated"] = schema
    try:
        importlib.import_module(wanted)
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
