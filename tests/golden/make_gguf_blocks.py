#!/usr/bin/env python3
"""Makes gguf/blocks.gguf: one small tensor of every type that compressor reads, and beside it the values that gguf-py reads from it.

    pip install numpy==2.4.6 gguf==0.19.0
    python tests/golden/make_gguf_blocks.py

Tensor `Q4_K` holds blocks, tensor `Q4_K.expected` their values in F32, and so on. gguf-py quantizes random numbers where it can; it can't
write the K types, so their blocks are random bytes with scales of an ordinary size. Both programs compute in f32 in the same order
of operations, so the values must be equal bit for bit.
"""
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, dequantize, quantize
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type

EXPECTED_VERSIONS = {"numpy": "2.4.6", "gguf": "0.19.0"}
K_SCALES = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}  # where a block keeps its f16 scales
BLOCKS = 3

rng = np.random.default_rng(20261121)
for package, expected in EXPECTED_VERSIONS.items():
    if version(package) != expected:
        print(f"note: {package} is {version(package)}, the committed file was made with {expected}")

path = Path(__file__).parent / "gguf" / "blocks.gguf"
writer = GGUFWriter(path, "llama")
for kind in (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K):
    elements, size = GGML_QUANT_SIZES[kind]
    if kind in K_SCALES:
        blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for at in K_SCALES[kind]:
            scales = rng.normal(0.0, 0.01, BLOCKS).astype(np.float16)
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(BLOCKS, 2)
        data = blocks.reshape(1, -1)
    else:
        columns = BLOCKS * elements if elements > 1 else 64
        data = quantize(rng.normal(0.0, 0.5, (2, columns)).astype(np.float32), kind)
    expected = np.ascontiguousarray(dequantize(data, kind).astype(np.float32))
    assert np.isfinite(expected).all() and expected.std() > 0, kind
    writer.add_tensor(kind.name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.add_tensor(f"{kind.name}.expected", expected, raw_dtype=Type.F32)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
print(f"{path}: {path.stat().st_size:,} bytes")
