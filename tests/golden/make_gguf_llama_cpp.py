#!/usr/bin/env python3
"""Makes gguf/llama_cpp/: tiny Llamas as people's files have them, and how llama.cpp continues a prompt with each.

    pip install numpy==2.4.6 gguf==0.19.0 xllamacpp==2026.10.11549
    python tests/golden/make_gguf_llama_cpp.py

Every file has the same random weights and one thing beside them: biases in some places, a rotary factor without a type, divisors of
rotary frequencies, one matrix for queries, keys and values, two parts. `expected.json` has eight greedy tokens of llama.cpp on one
thread, with their log probabilities.
"""
import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xllamacpp
from gguf import GGUFWriter

EXPECTED_VERSIONS = {"numpy": "2.4.6", "gguf": "0.19.0", "xllamacpp": "2026.10.11549"}
PROMPT = [1, 5, 9, 12, 40, 77, 120, 31]
TOKENS = 8
WIDTH, HEADS, KV_HEADS, HEAD_DIM, CHANNELS, LAYERS, CONTEXT, THETA = 16, 2, 1, 8, 24, 2, 256, 10000.0

for package, expected in EXPECTED_VERSIONS.items():
    if version(package) != expected:
        print(f"note: {package} is {version(package)}, the committed files were made with {expected}")

folder = Path(__file__).parent / "gguf" / "llama_cpp"
folder.mkdir(exist_ok=True)
rng = np.random.default_rng(20261201)
special = ["<|endoftext|>", "<s>", "</s>"]
keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
rest = [byte for byte in range(256) if byte not in keep]
# Bytes of ASCII alone: llama.cpp gives no number for a token that ends within a character.
words = special + [chr(byte) if byte in keep else chr(256 + rest.index(byte)) for byte in range(128)] + ["he"]


def normal(*shape):
    return (rng.normal(size=shape) * 0.4).astype(np.float32)


weights = {"token_embd.weight": normal(len(words), WIDTH), "output_norm.weight": 1 + normal(WIDTH)}
for layer in range(LAYERS):
    shapes = {"attn_q": (HEADS * HEAD_DIM, WIDTH), "attn_k": (KV_HEADS * HEAD_DIM, WIDTH), "attn_v": (KV_HEADS * HEAD_DIM, WIDTH),
              "attn_output": (WIDTH, HEADS * HEAD_DIM), "ffn_gate": (CHANNELS, WIDTH), "ffn_up": (CHANNELS, WIDTH),
              "ffn_down": (WIDTH, CHANNELS)}
    weights |= {f"blk.{layer}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
    weights |= {f"blk.{layer}.{name}.weight": 1 + normal(WIDTH) for name in ("attn_norm", "ffn_norm")}


def write(name, tensors, keys=(), is_whole=True):
    writer = GGUFWriter(folder / name, "llama")
    if is_whole:
        sizes = {"block_count": LAYERS, "context_length": CONTEXT, "embedding_length": WIDTH, "feed_forward_length": CHANNELS,
                 "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD_DIM}
        for key, size in sizes.items():
            writer.add_uint32(f"llama.{key}", size)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add_float32("llama.rope.freq_base", THETA)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama3")
        writer.add_token_list(words)
        writer.add_token_types([3] * len(special) + [1] * (len(words) - len(special)))
        writer.add_token_merges(["h e"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    for add, key, value in keys:
        getattr(writer, add)(key, value)
    for tensor, values in tensors.items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return name


def llama3_divisors(factor=8.0, low=1.0, high=4.0, original=64):
    for pair in range(HEAD_DIM // 2):
        wavelength = 2 * math.pi * THETA ** (2 * pair / HEAD_DIM)
        smooth = (original / wavelength - low) / (high - low)
        blended = 1 / ((1 - smooth) / factor + smooth)
        yield 1.0 if wavelength < original / high else factor if wavelength > original / low else blended


biases = {"blk.1.attn_q.bias": normal(HEADS * HEAD_DIM), "blk.1.attn_k.bias": normal(KV_HEADS * HEAD_DIM),
          "blk.0.attn_output.bias": normal(WIDTH), "blk.0.ffn_down.bias": normal(WIDTH), "blk.1.ffn_gate.bias": normal(CHANNELS)}
divisors = lambda values: {"rope_freqs.weight": np.array(list(values), np.float32)}
fused = {name: values for name, values in weights.items() if not any(f".attn_{part}." in name for part in "qkv")}
fused |= {f"blk.{layer}.attn_qkv.weight": np.concatenate([weights[f"blk.{layer}.attn_{part}.weight"] for part in "qkv"])
          for layer in range(LAYERS)}
second = {name: values for name, values in weights.items() if name.startswith("blk.1.")}
first = {name: values for name, values in weights.items() if name not in second}
split = lambda number: [("add_uint16", "split.no", number), ("add_uint16", "split.count", 2),
                        ("add_int32", "split.tensors.count", len(weights))]

names = [
    write("plain.gguf", weights),
    write("biases.gguf", weights | biases),
    write("linear-without-type.gguf", weights, [("add_float32", "llama.rope.scaling.factor", 4.0)]),
    write("divisors-of-llama3.gguf", weights | divisors(llama3_divisors())),
    write("divisors-and-factor.gguf", weights | divisors([3, 1, 7, 2]), [("add_float32", "llama.rope.scaling.factor", 1.5)]),
    write("fused.gguf", fused),
    write("split-00001-of-00002.gguf", first, split(0)),
]
write("split-00002-of-00002.gguf", second, split(1), is_whole=False)

expected = {}
for name in names:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(folder / name), CONTEXT, 1
    parameters.warmup, parameters.n_gpu_layers, parameters.verbosity = False, 0, 0
    parameters.cpuparams.n_threads = 1
    answer = xllamacpp.Server(parameters).handle_completions({
        "prompt": PROMPT, "n_predict": TOKENS, "max_tokens": TOKENS, "temperature": 0, "top_k": 1, "ignore_eos": True,
        "cache_prompt": False, "n_probs": 1, "logprobs": 1,
    })
    content = answer["choices"][0]["logprobs"]["content"]
    expected[name] = {"tokens": [one["id"] for one in content], "log_probabilities": [round(one["logprob"], 5) for one in content]}
(folder / "expected.json").write_text(json.dumps({"prompt": PROMPT, "files": expected}, indent=1) + "\n")
