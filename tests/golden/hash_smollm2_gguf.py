#!/usr/bin/env python3
"""Prints the BLAKE3 of some tensors of SmolLM2-135M-Instruct.Q4_1.gguf as gguf-py dequantizes them, for compressor/format/src/gguf/real.rs.

    pip install numpy==2.4.6 gguf==0.19.0 blake3==1.0.11
    python tests/golden/hash_smollm2_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf

Hashed are the little-endian f32 values, row-major; of q and k with the rows of each head back in Hugging Face's order, the first halves of
the rotary pairs before the second halves.
"""
import sys

import numpy as np
from blake3 import blake3
from gguf import GGUFReader, dequantize

HEADS = {"blk.0.attn_q.weight": 9, "blk.29.attn_k.weight": 3}
TENSORS = ["token_embd.weight", "blk.0.attn_q.weight", "blk.29.attn_k.weight", "blk.17.ffn_down.weight"]

reader = GGUFReader(sys.argv[1])
found = {tensor.name: tensor for tensor in reader.tensors}
for name in TENSORS:
    tensor = found[name]
    values = dequantize(tensor.data, tensor.tensor_type).astype("<f4")
    if name in HEADS:
        rows, columns = values.shape
        heads = HEADS[name]
        values = values.reshape(heads, rows // heads // 2, 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)
    print(name, tensor.tensor_type.name, values.shape, blake3(np.ascontiguousarray(values).tobytes()).hexdigest())
