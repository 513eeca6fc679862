#!/usr/bin/env python3
"""Recomputes, in plain numpy, every quantized tensor that llm-compressor wrote, and compares bit for bit.

    reproduce_compressed_tensors.py FOLDER

FOLDER holds `dense/` (the source checkpoint) and folders quantized from it in the compressed-tensors convention by
round-to-nearest (observer `memoryless_minmax`); a folder with tied embeddings holds no head. Prints a line per tensor;
exit code 1 if one differs.

The recipe, all of it in the weight's own dtype (here float32), per group of `group_size` input elements (or per output row):

    range                 q_min = -2^(bits-1), q_max = 2^(bits-1) - 1
    low, high             min(0, smallest), max(0, largest): zero is always representable
    symmetric             scale = max(-low, high) / ((q_max - q_min) / 2)      INT4: / 7.5, INT8: / 127.5
    asymmetric            scale = (high - low) / (q_max - q_min)               INT4: / 15, INT8: / 255
                          zero point = int8(round(clamp(q_min - low / scale, q_min, q_max)))
    all-zero group        scale 0 becomes the dtype's machine epsilon (2^-23 in float32)
    integer               q = round(clamp(w / scale + zero point, q_min, q_max)), round half to even, clamp before rounding
    back                  w = (q - zero point) * scale

The symmetric range is not narrowed to ±q_max: the element of largest magnitude lands on ±7.5 steps, and is clamped to 7 when positive
and rounded to -8 (half to even) when negative, or to -7 where the division comes out just below 7.5. So the same integers need the same
operations: divide by the rounded scale in float32, never multiply by its reciprocal.

Packing (`pack-quantized`): q + 2^(bits-1) is written as an unsigned number of `bits` bits, element i of a row at bit i*bits of that row's
little-endian bit stream (least significant bit first), in ceil(cols*bits/32) int32 words. Widths which do not divide 32
(3, 5, 6, 7) cross words. Zero points are packed alike, but down the rows: tensor [ceil(rows*bits/32), groups].
"""
import argparse
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file


def quantize(weight, bits, group_size, symmetric):
    """Round-to-nearest of `weight` [rows, cols]; returns integers [rows, cols], scale [rows, groups], zero point [rows, groups]."""
    rows, cols = weight.shape
    q_min, q_max = np.float32(-(2 ** (bits - 1))), np.float32(2 ** (bits - 1) - 1)
    groups = weight.reshape(rows, -1, group_size or cols)
    low = np.minimum(groups.min(axis=2), np.float32(0))
    high = np.maximum(groups.max(axis=2), np.float32(0))
    if symmetric:
        scale = np.maximum(-low, high) / ((q_max - q_min) / np.float32(2))
        zero_point = np.zeros_like(scale)
    else:
        scale = (high - low) / (q_max - q_min)
        # An all-zero group divides 0 by 0 here; any zero point does, because its weights are 0 / epsilon + zero point.
        with np.errstate(invalid="ignore"):
            zero_point = np.rint(np.clip(q_min - low / scale, q_min, q_max))
        zero_point = np.nan_to_num(zero_point, nan=0.0)
    scale = np.where(scale == 0, np.finfo(np.float32).eps, scale)
    q = np.rint(np.clip(groups / scale[:, :, None] + zero_point[:, :, None], q_min, q_max))
    return q.astype(np.int8).reshape(rows, cols), scale, zero_point.astype(np.int8)


def pack(q, bits):
    """Packs integers [rows, cols] along the columns into int32 words [rows, ceil(cols * bits / 32)]."""
    rows, cols = q.shape
    words = -(-cols * bits // 32)
    unsigned = (q.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    stream = np.unpackbits(unsigned[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(rows, cols * bits)
    stream = np.pad(stream, ((0, 0), (0, words * 32 - cols * bits)))
    return np.packbits(stream, axis=1, bitorder="little").view("<i4")


def expected_tensors(name, weight, scheme):
    """What the quantized folder must hold in place of `name`.weight."""
    args = scheme["weights"]
    q, scale, zero_point = quantize(weight, args["num_bits"], args["group_size"], args["symmetric"])
    if scheme["format"] == "int-quantized":
        return {f"{name}.weight": q, f"{name}.weight_scale": scale}
    tensors = {
        f"{name}.weight_packed": pack(q, args["num_bits"]),
        f"{name}.weight_scale": scale,
        f"{name}.weight_shape": np.array(weight.shape, np.int64),
    }
    if not args["symmetric"]:
        tensors[f"{name}.weight_zero_point"] = np.ascontiguousarray(pack(zero_point.T, args["num_bits"]).T)
    return tensors


def compare(folder, dense):
    """Prints a line per tensor of `folder`; returns how many differ."""
    config = json.loads((folder / "config.json").read_text())
    (scheme,) = config["quantization_config"]["config_groups"].values()
    found = load_file(folder / "model.safetensors")
    expected = {}
    for key, tensor in dense.items():
        if key == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        name, _, leaf = key.rpartition(".")
        is_linear = leaf == "weight" and name.endswith("_proj")
        expected.update(expected_tensors(name, tensor, scheme) if is_linear else {key: tensor})
    different = 0
    for key in sorted(expected.keys() | found.keys()):
        if key not in found or key not in expected:
            verdict = "missing" if key not in found else "unexpected"
        elif (found[key].dtype, found[key].shape) != (expected[key].dtype, expected[key].shape):
            verdict = f"different: {found[key].dtype} {found[key].shape}, expected {expected[key].dtype} {expected[key].shape}"
        elif found[key].tobytes() == expected[key].tobytes():
            verdict = "equal"
        else:
            verdict = f"different: {np.count_nonzero(found[key] != expected[key])} of {found[key].size} elements"
        different += verdict != "equal"
        print(f"{folder.name}: {key}: {verdict}")
    return different, len(expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    root = parser.parse_args().folder
    dense = load_file(root / "dense" / "model.safetensors")
    total = 0
    for folder in sorted(path.parent for path in root.glob("*/config.json") if path.parent.name != "dense"):
        different, count = compare(folder, dense)
        print(f"{folder.name}: {count - different} of {count} tensors equal")
        total += different
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
