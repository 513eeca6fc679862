#!/usr/bin/env python3
"""Opens a model folder with Transformers, on CPU in float32, and prints what it computes as one JSON object.

    transformers_check.py MODEL_DIR [--ids 1,2,3 | --tokenizer-text TEXT] [--generate N] [--logits] [--threads N]

MODEL_DIR is any Hugging Face folder: dense, pruned, or quantized in the compressed-tensors convention. Keys of the result:

    model_type, parameters     as Transformers sees the model (a packed weight counts as its int32 words)
    quantized_modules          how many modules Transformers took for quantized
    input_ids                  the prompt, from --ids or encoded by the folder's tokenizer
    generated_ids              --generate: N tokens, always the most probable one; no penalties, no stop at an end token,
                               generation_config.json is not read
    generated_text             the same decoded, with --tokenizer-text
    logits_last                --logits: logits at the prompt's last position

Exit code 1, with the reason on stderr, where a tensor of the folder has no place in the model or a tensor of the model is not in the folder:
Transformers only warns then, and computes with random numbers.
"""
import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def load(folder):
    """The model in float32, and the list of what did not fit."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    misfits = [f"{kind}: {key}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in sorted(info[kind])]
    return model.eval(), misfits


@torch.no_grad()
def greedy(model, input_ids, count):
    """`count` tokens after `input_ids`, each the argmax of the logits."""
    step = torch.tensor([input_ids])
    cache, generated = None, []
    for _ in range(count):
        output = model(step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        generated.append(int(output.logits[0, -1].argmax()))
        step = torch.tensor([generated[-1:]])
    return generated


@torch.no_grad()
def last_logits(model, input_ids):
    return model(torch.tensor([input_ids]), use_cache=False).logits[0, -1].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--ids", help="token ids, separated by commas")
    prompt.add_argument("--tokenizer-text", help="text, encoded without added special tokens by the folder's tokenizer")
    parser.add_argument("--generate", type=int, metavar="N", default=0)
    parser.add_argument("--logits", action="store_true")
    parser.add_argument("--threads", type=int, metavar="N", default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()

    tokenizer = None
    if args.ids is not None:
        input_ids = [int(token) for token in args.ids.split(",")]
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model_dir, local_files_only=True)
        input_ids = tokenizer.encode(args.tokenizer_text, add_special_tokens=False)

    model, misfits = load(args.model_dir)
    if misfits:
        sys.exit(f"{args.model_dir}: Transformers could not fit these tensors:\n  " + "\n  ".join(misfits))
    result = {
        "model_type": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "quantized_modules": sum(hasattr(module, "quantization_scheme") for module in model.modules()),
        "input_ids": input_ids,
    }
    if args.generate:
        result["generated_ids"] = greedy(model, input_ids, args.generate)
        if tokenizer:
            result["generated_text"] = tokenizer.decode(result["generated_ids"])
    if args.logits:
        result["logits_last"] = last_logits(model, input_ids)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
