#!/usr/bin/env python3
"""Writes a Hugging Face folder with a Llama as a GGUF file in f32, from which llama.cpp makes its other types.

    make_gguf.py MODEL_DIR OUT.gguf

Byte-level BPE in SmolLM's way of splitting text, one model.safetensors, no biases, no scaling of the rotary frequencies; anything else is
refused. Environment: setup.sh. Tensor names and metadata: the `gguf` package.
"""
import argparse
import json
import os
import pathlib
import sys

import gguf
import numpy as np

# config.json's keys that change what is computed, and the only value that this writes.
EXPECTED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
# How SmolLM's tokenizer splits text, which llama.cpp knows by the name "smollm": type, individual_digits, add_prefix_space.
SPLITS = [("Digits", True, None), ("ByteLevel", None, False)]


def refuse(path, what):
    sys.exit(f"{path}: {what}")


def read_tensors(path):
    """Yields (name, f32 array) of every tensor in a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
    stored = np.memmap(path, dtype=np.uint8, mode="r", offset=start)
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        raw = stored[begin:end]
        if tensor["dtype"] == "BF16":  # the upper half of an f32
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif tensor["dtype"] in ("F16", "F32"):
            values = raw.view({"F16": np.float16, "F32": np.float32}[tensor["dtype"]]).astype(np.float32)
        else:
            refuse(path, f"tensor `{name}` is {tensor['dtype']}, expected BF16, F16 or F32")
        yield name, values.reshape(tensor["shape"])


def interleave(weight, heads):
    """Rows of a query or key projection [heads · head_dim, in]: Hugging Face rotates halves of a head, llama.cpp's Llama neighbours."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def add_sizes(writer, path, config):
    for key, expected in EXPECTED.items():
        if config.get(key, expected) != expected:
            refuse(path, f"{key} is {config[key]!r}, only {expected!r} can be written")
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_tokenizer(writer, path, config):
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    splits = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers", [])
    splits = [(split["type"], split.get("individual_digits"), split.get("add_prefix_space")) for split in splits]
    if tokenizer["model"]["type"] != "BPE" or splits != SPLITS:
        refuse(path, "is not byte-level BPE with single digits, the only one that can be written")
    tokens, kinds = {}, {}
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], kinds[index] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    if sorted(tokens) != list(range(config["vocab_size"])):
        refuse(path, f"has {len(tokens)} tokens, config.json asks for ids 0 to {config['vocab_size'] - 1}")
    order = range(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokens[index] for index in order])
    writer.add_token_types([kinds[index] for index in order])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def add_tensors(writer, path, config):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    rotated = {"q_proj.weight": heads, "k_proj.weight": config.get("num_key_value_heads", heads)}
    for name, values in read_tensors(path):
        theirs = names.get_name(name, try_suffixes=(".weight",))
        if theirs is None:
            refuse(path, f"tensor `{name}` has no name in a Llama's GGUF file")
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        for suffix, of_heads in rotated.items():
            if name.endswith(suffix):
                values = interleave(values, of_heads)
        writer.add_tensor(theirs, np.ascontiguousarray(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    config = json.loads((args.model_dir / "config.json").read_text(encoding="utf-8"))

    unfinished = args.out.with_name(args.out.name + ".tmp")
    writer = gguf.GGUFWriter(unfinished, "llama")
    add_sizes(writer, args.model_dir / "config.json", config)
    add_tokenizer(writer, args.model_dir / "tokenizer.json", config)
    add_tensors(writer, args.model_dir / "model.safetensors", config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, args.out)


if __name__ == "__main__":
    main()
