"""One layer of the released 8B model's backbone and speech head at full width, with random weights.

Sizes from the released configuration; vocabularies are cut, since they only make tables longer. Linear layers come as
float32 or as the block-quantized nodes an int4/int8 bundle holds (csrc/kernels/matrix.h).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from edge_sdk.config import (
    EncoderConfig,
    MelConfig,
    ModelConfig,
    SpeechIds,
    TextIds,
    TransformerConfig,
)
from edge_sdk.export.engine.graph import Graph, Tensor, attributes, read_graph
from edge_sdk.export.graphs.backbone import build_backbone
from edge_sdk.export.graphs.blocks import Tensors
from edge_sdk.export.graphs.builder import (
    EDGE_SDK,
    EDGE_SDK_OPSET,
    MICROSOFT,
    MICROSOFT_OPSET,
    OPSET,
    GraphBuilder,
)
from edge_sdk.export.graphs.speech_head import build_speech_head
from edge_sdk.export.weights import language_weights
from edge_sdk.manifest import FORMAT, FORMAT_VERSION, Manifest

Array = np.ndarray[Any, Any]

MODEL = ModelConfig(
    group_size=5,
    mel=MelConfig(n_mels=128, n_fft=400, hop_samples=160, sample_rate=16000, max_samples=480000),
    encoder=EncoderConfig(d_model=64, num_layers=1, num_heads=2, ffn_dim=64, n_mels=128, n_window=100),
    backbone=TransformerConfig(
        hidden_size=4096, num_layers=1, num_heads=32, num_kv_heads=8, head_dim=128, intermediate_size=12288,
        rms_norm_eps=1e-6, rope_theta=5e6,
    ),
    speech_head=TransformerConfig(
        hidden_size=1024, num_layers=1, num_heads=16, num_kv_heads=8, head_dim=128, intermediate_size=3072,
        rms_norm_eps=1e-6, rope_theta=1e6,
    ),
    text_ids=TextIds(vocab_size=512, eos=(1,), audio_bos=2, audio_eos=3, audio=4),
    speech_ids=SpeechIds(codebook_size=512, bos=509, eos=510, pad=511),
    audio_features_mode="add",
)  # fmt: skip


def graph(key: str) -> Graph:
    """ "backbone" or "speech_head", float32, as a bundle holds it."""
    rng = np.random.default_rng(1)
    shapes = language_weights(MODEL, tied=False).required
    tensors = Tensors(shapes, lambda name: 0.02 * rng.standard_normal(shapes[name], np.float32))
    assert MODEL.speech_head
    if key == "backbone":
        return from_builder(build_backbone(MODEL, tensors, tied=False))
    return from_builder(build_speech_head(MODEL, MODEL.speech_head, tensors))


def from_builder(builder: GraphBuilder) -> Graph:
    """What reading the written files would give, without writing them."""
    made = read_graph(builder.name, _without_weights(builder), memoryview(b""), {}, {}, builder.name)
    made.inputs, made.outputs = ({s.name: s for s in specs} for specs in (builder.inputs, builder.outputs))
    made.weights = {
        w.name: Tensor(w.name, helper.np_dtype_to_tensor_dtype(w.dtype), w.shape, w.array)
        for w in builder._weights.values()
    }
    return made


def _without_weights(builder: GraphBuilder) -> bytes:
    graph = helper.make_graph(builder._nodes, builder.name, [], [], [])
    opsets = [
        helper.make_opsetid(*of) for of in (("", OPSET), (MICROSOFT, MICROSOFT_OPSET), (EDGE_SDK, EDGE_SDK_OPSET))
    ]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(builder._functions.values()))
    return bytes(model.SerializeToString())


def quantize(graph: Graph, bits: int, block: int) -> None:
    """Every linear layer of the decoder stack as MatMulNBits, as in a bundle of that precision."""
    nodes = []
    for node in graph.nodes:
        weight = graph.weights.get(node.input[1]) if node.op_type == "Gemm" else None
        if weight is None or "proj" not in weight.name or not attributes(node).get("transB"):
            nodes.append(node)
            continue
        rows, cols = weight.shape
        packed, scales = quantize_matrix(weight.load(), bits, block)
        for name, array in ((f"{weight.name}.q", packed), (f"{weight.name}.scales", scales)):
            graph.weights[name] = Tensor.of(name, array)
        made = helper.make_node(
            "MatMulNBits", [node.input[0], f"{weight.name}.q", f"{weight.name}.scales", *("", "", *node.input[2:])],
            list(node.output), name=node.name.replace("Gemm", "MatMulNBits"), domain="com.microsoft",
            N=rows, K=cols, bits=bits, block_size=block,
        )  # fmt: skip
        nodes.append(made)
    graph.nodes = nodes
    graph.opsets["com.microsoft"] = 1


def quantize_matrix(weight: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Round to nearest; a row's last block is filled with zeros. -> packed uint8, scales float32 [rows, blocks]."""
    rows, cols = weight.shape
    blocks = -(-cols // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :cols] = weight
    cut = padded.reshape(rows, blocks, block)
    zero = 1 << (bits - 1)
    scales = np.maximum(np.abs(cut).max(axis=2), 1e-9).astype(np.float32) / np.float32(zero - 1)
    values = (np.clip(np.rint(cut / scales[..., None]), -zero, zero - 1) + zero).astype(np.uint8).reshape(rows, -1)
    if bits == 4:
        values = values[:, ::2] | values[:, 1::2] << 4
    return values.reshape(rows, blocks, -1), scales


def linear_values(key: str) -> int:
    """Values in the layer's linear weights."""
    config = MODEL.backbone if key == "backbone" else MODEL.speech_head
    assert config
    heads = (config.num_heads + config.num_kv_heads) * config.head_dim
    return 2 * heads * config.hidden_size + 3 * config.intermediate_size * config.hidden_size


# Tables, heads and kernels of a plan: what is not the layer's linear weights.
OTHER_BYTES = {"backbone": 24e6, "speech_head": 10e6}
MANIFEST = Manifest(FORMAT, FORMAT_VERSION, "full width", MODEL, None, {}, {})
