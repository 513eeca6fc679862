#!/usr/bin/env python3
"""Flips every key of a `quantization_config` and notes what Transformers then computes.

    make_quantization_config.py [--out tests/golden/quantization]

Makes three tiny Llamas with untied heads, quantized by compressed-tensors' own functions: `pack` (INT4 in groups with zero points), `int8`
(W8A8, scales of each token) and `static` (W8A8, stored scales). For each, `cases.json` holds changes of its config.json, as a list of paths
and values, with what comes out:

    logits     what Transformers computes with it; null where that is what it computes without the change
    error      what it refuses; where weights are missing or left over, it goes on with random ones, and that stands here too

The keys are those that the classes QuantizationConfig, QuantizationScheme and QuantizationArgs have: a new one without a value here ends the
script. Environment: tests/interop/setup.sh. Made with transformers 5.17.0, compressed-tensors 0.19.0, torch on the CPU.
"""
import argparse
import copy
import io
import json
import logging
import pathlib
import shutil
import tempfile

import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SEED = 11
PROMPT = [1, 5, 9, 12, 3, 30, 7, 2]
HEAD = "lm_head"
QUERY = "model.layers.0.self_attn.q_proj"
WEIGHTS = {
    "pack": dict(num_bits=4, type="int", symmetric=False, strategy="group", group_size=8),
    "int8": dict(num_bits=8, type="int", symmetric=True, strategy="channel", group_size=None),
}
WEIGHTS["static"] = WEIGHTS["int8"]
INPUTS = {
    "pack": None,
    "int8": dict(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True),
    "static": dict(num_bits=8, type="int", symmetric=True, strategy="tensor", dynamic=False),
}
FORMATS = {"pack": "pack-quantized", "int8": "int-quantized", "static": "int-quantized"}


def base(name):
    group = dict(
        targets=["Linear"], weights=dict(WEIGHTS[name], dynamic=False, observer="minmax"),
        input_activations=INPUTS[name], output_activations=None, format=FORMATS[name],
    )  # fmt: skip
    return dict(
        quant_method="compressed-tensors", format=FORMATS[name], quantization_status="compressed", config_groups=dict(group_0=group),
        ignore=[], kv_cache_scheme=None, global_compression_ratio=None, sparsity_config={}, transform_config={}, version="0.19.0",
    )  # fmt: skip


def write(name, folder):
    """A model whose every Linear is quantized, the head among them."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8, vocab_size=32,
        max_position_embeddings=32, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    tensors = {}
    for key, value in model.state_dict().items():
        value = torch.randn(value.shape) * (0.5 if value.ndim == 2 else 0.1) + (1.0 if value.ndim == 1 else 0.0)
        if value.ndim == 1 or "embed" in key:
            tensors[key] = value
            continue
        module = key.removesuffix(".weight")
        args = WEIGHTS[name]
        groups = value.reshape(value.shape[0], -1, args["group_size"] or value.shape[1])
        low, high = -(1 << args["num_bits"] - 1), (1 << args["num_bits"] - 1) - 1
        if args["symmetric"]:
            scale, zero = groups.abs().amax(-1) / high, torch.zeros(groups.shape[:2])
        else:
            least, most = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
            scale = (most - least) / (high - low)
            zero = torch.round(low - least / scale).clamp(low, high)
        integers = torch.round(groups / scale[..., None] + zero[..., None]).clamp(low, high).reshape(value.shape).to(torch.int8)
        tensors[f"{module}.weight_scale"] = scale
        if FORMATS[name] == "pack-quantized":
            tensors[f"{module}.weight_packed"] = pack_to_int32(integers, args["num_bits"])
            tensors[f"{module}.weight_shape"] = torch.tensor(value.shape, dtype=torch.int64)
            tensors[f"{module}.weight_zero_point"] = pack_to_int32(zero.to(torch.int8), args["num_bits"], packed_dim=0)
        else:
            tensors[key] = integers
        if name == "static":
            tensors[f"{module}.input_scale"] = torch.tensor([0.011])
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = config.to_dict() | dict(quantization_config=base(name), architectures=["LlamaForCausalLM"], dtype="float32")
    (folder / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")


def answer(folder):
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    transformers.utils.logging.get_logger("transformers").addHandler(handler)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[kind]:
                return None, f"{kind}: {sorted(map(str, info[kind]))[0]}"
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT])).logits[0]
        if not torch.isfinite(logits).all():
            return None, "logits that are not finite"
        return logits, None
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"
    finally:
        transformers.utils.logging.get_logger("transformers").removeHandler(handler)


CONFIG = {
    "quant_method": ["gptq", "awq", "fp8", "bitsandbytes", None, 7],
    "config_groups": [{}, None, {"group_0": ["Linear"]}, {"W8A8": ["Linear"]}, []],
    "kv_cache_scheme": [
        dict(num_bits=8, type="int", symmetric=True, strategy="tensor", dynamic=True),
        dict(num_bits=8, type="float", symmetric=True, strategy="tensor", dynamic=False),
    ],
    "format": ["dense", "int-quantized", "pack-quantized", "naive-quantized", "mixed-precision", "float-quantized", "marlin-24", None],
    "quantization_status": ["initialized", "calibration", "frozen", "decompressed", None],
    "global_compression_ratio": [1.5, "high"],
    "ignore": [[HEAD], [QUERY], ["re:.*_proj$"], ["re:_proj$"], ["Linear"], ["Embedding"], None, "lm_head", [7], ["re:.*(?=q)q_proj"], ["none"]],
    # Not in the class, and written by it or by llm-compressor all the same.
    "sparsity_config": [{"format": "dense", "sparsity_structure": "unstructured"}, {"format": "sparse-24-bitmask"}, None],
    "transform_config": [{"config_groups": {"u": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "input"}]}}}, None],
    "version": ["0.1", None],
    "run_compressed": [True, False],
    "dequantize": [True],
    "use_optimized_inference": [True],
}
SCHEME = {
    "targets": [
        [], None, "Linear", ["Embedding"], ["Module"], ["Linear", "Embedding"], ["LlamaAttention"], ["LlamaMLP", "Linear"], ["re:.*"],
        ["re:.*_proj", HEAD], ["re:.*self_attn$", "Linear"], ["re:.*self_attn.*", "re:.*mlp.*", HEAD], ["model.layers.0.self_attn", "Linear"],
        ["re:_proj"], [HEAD], ["Linear", "none"], ["re:.*[a-z]_proj$", "re:lm_(head|tail)"], ["Linear", "Linear"], ["re:("],
    ],
    "weights": [None],
    "input_activations": [None, *[args for args in INPUTS.values() if args]],
    "output_activations": [dict(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True), dict(num_bits=8, dynamic=False)],
    "format": ["pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "dense", "mixed-precision", "other", None],
}  # fmt: skip
ARGUMENTS = {
    "num_bits": [2, 3, 4, 7, 8, 9, 16, 0, -4, "4", 4.0, None],
    "type": ["int", "INT", "float", "other", None],
    "symmetric": [True, False, None, "true"],
    "group_size": [8, 16, 4, 3, 0, -1, -2, None, "8"],
    "strategy": ["tensor", "channel", "group", "block", "token", "tensor_group", "attn_head", "CHANNEL", "other", None],
    "block_structure": [[8, 8], "8x8", [8]],
    "dynamic": [True, False, "local", "LOCAL", None],
    "actorder": ["weight", "static", "group", "dynamic", True, False, "other"],
    "scale_dtype": ["torch.float16", "torch.bfloat16", "torch.uint8", 7],
    "zp_dtype": ["torch.int8", "torch.int32", "torch.float32", 7],
    "observer": ["minmax", "mse", 7],
    "observer_kwargs": [{}, {"averaging_constant": 0.5}, 7],
}
GONE = "(no key)"


def changes():
    """Lists of [path, value]."""
    top, group = ["quantization_config"], ["quantization_config", "config_groups", "group_0"]
    for known, fields in ((CONFIG, QuantizationConfig), (SCHEME, QuantizationScheme), (ARGUMENTS, QuantizationArgs)):
        unknown = set(fields.model_fields) - set(known)
        assert not unknown, f"{fields.__name__} has keys without values here: {unknown}"
    for path, known in ((top, CONFIG), (group, SCHEME), (group + ["weights"], ARGUMENTS), (group + ["input_activations"], ARGUMENTS)):
        for key, values in known.items():
            yield from ([[path + [key], value]] for value in [*values, GONE])
        yield [[path + ["unknown"], 1]]
    # What is said of groups side by side.
    for second in (
        dict(targets=[HEAD], input_activations=None), dict(targets=[QUERY], input_activations=None), dict(targets=["re:.*mlp.*"], input_activations=None),
        dict(targets=["re:.*q_proj", "re:.*"], input_activations=None), dict(targets=["Module"], input_activations=None),
        dict(targets=["Linear"], input_activations=None), dict(targets=["Linear"]), dict(targets=[QUERY], input_activations=INPUTS["static"]),
        dict(targets=[QUERY], weights=None), dict(targets=[QUERY], weights=None, input_activations=None),
        dict(targets=["model.embed_tokens"], weights=None, input_activations=None),
    ):  # fmt: skip
        yield [[group[:-1] + ["group_1"], second]]
        yield [[group[:-1] + ["a_group"], second]]


def changed(config, edits):
    config = copy.deepcopy(config)
    for path, value in edits:
        at = config
        for key in path[:-1]:
            if not isinstance(at.get(key), dict):
                return None
            at = at[key]
        if value == GONE:
            if at.pop(path[-1], GONE) == GONE:
                return None
        elif path[-1] in ("group_1", "a_group"):
            at[path[-1]] = dict(at["group_0"], **value)
        else:
            at[path[-1]] = value
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "quantization")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    found = {}
    for name in WEIGHTS:
        folder = out / name
        folder.mkdir(parents=True)
        write(name, folder)
        config = json.loads((folder / "config.json").read_text())
        plain, error = answer(folder)
        assert error is None, error
        cases = []
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            (scratch / "model.safetensors").symlink_to((folder / "model.safetensors").resolve())
            for edits in changes():
                other = changed(config, edits)
                if other is None or other == config:
                    continue
                (scratch / "config.json").write_text(json.dumps(other))
                logits, error = answer(scratch)
                # The group with its keys filled in: the test has no need to know how.
                edits = [[path, at(other, path)] for path, _ in edits]
                if error is not None:
                    cases.append(dict(edits=edits, error=error))
                elif torch.equal(logits, plain):
                    cases.append(dict(edits=edits, logits=None))
                else:
                    cases.append(dict(edits=edits, logits=[round(x, 6) for x in logits.flatten().tolist()]))
        found[name] = dict(prompt=PROMPT, logits=[round(x, 6) for x in plain.flatten().tolist()], cases=cases)
        kinds = [sum(1 for case in cases if is_kind(case)) for is_kind in (lambda c: "error" in c, lambda c: c.get("logits"), lambda c: c.get("logits", 0) is None)]
        print(name, "refused or random, other, same:", kinds)
    lines = [f" {json.dumps(name)}: {{" + "".join(f"\n  {json.dumps(key)}: {json.dumps(value)}," for key, value in entry.items() if key != "cases")
             + '\n  "cases": [\n   ' + ",\n   ".join(json.dumps(case) for case in entry["cases"]) + "\n  ]\n }" for name, entry in found.items()]  # fmt: skip
    (out / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def at(config, path):
    for key in path[:-1]:
        config = config[key]
    return config.get(path[-1], GONE)


if __name__ == "__main__":
    main()
