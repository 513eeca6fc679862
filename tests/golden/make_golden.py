#!/usr/bin/env python3
"""Makes the golden models: a tiny random checkpoint for each model family, with what Transformers computes from it.

    make_golden.py [--out tests/golden/models]

Every folder holds a Hugging Face checkpoint (config.json, model.safetensors; one is in two files) and golden.safetensors:

    input_ids       i64 [24]            the prompt
    logits          f32 [24, vocab]     logits at each of its positions, computed in float32 from the stored weights
    generated_ids   i64 [8 + 16]        the first 8 tokens of the prompt and 16 more, each the most probable one; an end token does not stop it

The weights are drawn from seeded normal distributions, wide enough that each part of the forward pass moves the logits: a norm without its
weight, a bias left out or a rotation by the wrong angle shows. Environment: tests/interop/setup.sh.
"""
import argparse
import json
import pathlib
import shutil

import numpy
import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

SEED = 16
PROMPT, PREFIX, GENERATED = 24, 8, 16

ROTARY = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=96, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None,
)  # fmt: skip

# name: (model class, config, dtype of the stored weights, what it covers)
MODELS = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(**ROTARY, head_dim=8, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        torch.float32,
        "tied embeddings, 4 query heads on 2 key/value heads",
    ),
    "llama-head-dim": (
        LlamaForCausalLM,
        LlamaConfig(**ROTARY, head_dim=16, tie_word_embeddings=False, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 100000.0}),
        torch.float32,
        "own output head, head_dim 16 where hidden_size / heads is 8, another rotary base",
    ),
    "llama-sharded-bf16": (
        LlamaForCausalLM,
        LlamaConfig(**ROTARY, head_dim=8, tie_word_embeddings=False, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        torch.bfloat16,
        "weights in two files with an index",
    ),
    "llama3-rope": (
        LlamaForCausalLM,
        LlamaConfig(**ROTARY, head_dim=16, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_parameters={
            # Wave lengths are 2π · 100^(i/8): 6 and 11 are kept (below 32/2), 20 is blended, 35 and longer (above 32/1) are scaled.
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0,
            "original_max_position_embeddings": 32,
        }),
        torch.bfloat16,
        "rotary scaling of type llama3, frequencies in all of its three ranges",
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig(**ROTARY, head_dim=8, tie_word_embeddings=False, sliding_window=None, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        torch.float16,
        "Mistral without a sliding window",
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**ROTARY, tie_word_embeddings=True, use_sliding_window=False, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        torch.bfloat16,
        "biases on query, key and value; tied embeddings",
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**ROTARY, head_dim=16, tie_word_embeddings=True, use_sliding_window=False, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        torch.float32,
        "norms on query and key with their weights, head_dim 16 where hidden_size / heads is 8",
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(n_embd=32, n_inner=64, n_layer=2, n_head=4, vocab_size=96, n_positions=64, activation_function="gelu_new",
                   bos_token_id=1, eos_token_id=2, pad_token_id=None, tie_word_embeddings=True, layer_norm_epsilon=1e-5),
        torch.float32,
        "LayerNorm, learned positions, fused query/key/value stored [in, out], gelu_new, all biases; n_inner 2 × n_embd",
    ),
}  # fmt: skip


def redraw(model, generator):
    """Draws all weights anew: matrices N(0, 0.2), norm weights 1 + N(0, 0.1), biases N(0, 0.1)."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.2 * noise)


@torch.no_grad()
def golden(model, input_ids):
    """The golden tensors of `model` for the prompt `input_ids`."""
    logits = model(input_ids[None], use_cache=False).logits[0]
    generated = input_ids[:PREFIX]
    for _ in range(GENERATED):
        following = model(generated[None], use_cache=False).logits[0, -1]
        best, second = following.topk(2).values.tolist()
        assert best - second > 1e-3, "two tokens are nearly as probable: another implementation may rightly take the other one"
        generated = torch.cat([generated, following.argmax()[None]])
    assert len(generated[PREFIX:].unique()) >= 6, "the continuation repeats itself and would hide mistakes: take another SEED"
    return {"input_ids": input_ids, "logits": logits.float().contiguous(), "generated_ids": generated}


def make(name, folder):
    """Writes one golden model; returns its number of parameters."""
    kind, config, dtype, _ = MODELS[name]
    generator = torch.Generator().manual_seed(SEED + sorted(MODELS).index(name))
    config._attn_implementation = "eager"
    model = kind(config).eval()
    redraw(model, generator)
    shutil.rmtree(folder, ignore_errors=True)
    shards = 2 if "sharded" in name else 1
    model.to(dtype).save_pretrained(folder, max_shard_size="30KB" if shards == 2 else "1GB")
    assert len(list(folder.glob("model*.safetensors"))) == shards
    (folder / "generation_config.json").unlink()

    # From the files and in float32, so that the golden values belong to what is stored.
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    input_ids = torch.randint(3, config.vocab_size, (PROMPT,), generator=generator)
    save_file(golden(model, input_ids), folder / "golden.safetensors")
    return sum(parameter.numel() for parameter in model.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "models")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for name in MODELS:
        parameters = make(name, out / name)
        size = sum(path.stat().st_size for path in (out / name).iterdir())
        dtype, covers = MODELS[name][2:]
        rows.append(f"| `{name}` | {parameters:,} | {str(dtype).removeprefix('torch.')} | {size:,} | {covers} |")
    (out / "README.md").write_text(
        "# Golden models\n\n"
        "Tiny random checkpoints and what Transformers computes from them, made by `tests/golden/make_golden.py`; its head describes the files.\n"
        "The environment is made by `tests/interop/setup.sh`.\n\n"
        "| name | parameters | weights | bytes | covers |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"Versions: transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, "
        f"safetensors {safetensors.__version__}, numpy {numpy.__version__}; seed {SEED}; attention `eager`, one thread.\n"
    )
    print(json.dumps({"models": len(rows), "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file())}))


if __name__ == "__main__":
    main()
