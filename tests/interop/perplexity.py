#!/usr/bin/env python3
"""Perplexity of a model folder over a text, with Transformers on CPU in float32, as one JSON object.

    perplexity.py MODEL_DIR TEXT --windows N [--window 512] [--score-from 257] [--threads N]

The text is encoded as a whole, and cut into windows that follow each other; where the tokenizer begins
texts with a token, that stands in the place of each window's first. Token i of a window (counted from 0)
is scored from the tokens before it in the same window, for i in score-from … window-1. Perplexity is exp of the mean negative
log likelihood over the scored tokens of all windows.
"""
import argparse
import json
import math
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers.utils import logging

from transformers_check import load


@torch.no_grad()
def window_loss(model, tokens, score_from):
    """Sum of the negative log likelihoods of tokens[score_from:], in nats."""
    logits = model(torch.tensor([tokens[:-1]]), use_cache=False).logits[0, score_from - 1 :]
    targets = torch.tensor(tokens[score_from:])
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().sum().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--windows", type=int, required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--score-from", type=int, default=257)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if not 1 <= args.score_from < args.window:
        parser.error(f"--score-from is {args.score_from}, must be 1 to {args.window - 1}: token 0 has nothing before it")
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()

    tokenizer = Tokenizer.from_file(str(args.model_dir / "tokenizer.json"))
    tokens = tokenizer.encode(args.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    # Where the tokenizer begins texts with a token, that stands in the place of each window's first.
    plain, special = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    bos = special[:1] if special[1:1 + len(plain)] == plain else []
    tokens = bos + tokens
    available = len(tokens) // args.window
    if not 1 <= args.windows <= available:
        parser.error(f"--windows is {args.windows}, {args.text} holds {available} of {args.window} tokens")
    model, misfits = load(args.model_dir)
    if misfits:
        sys.exit(f"{args.model_dir}: Transformers could not fit these tensors:\n  " + "\n  ".join(misfits))

    total = sum(
        window_loss(model, (bos or tokens[at : at + 1]) + tokens[at + 1 : at + args.window], args.score_from)
        for at in range(0, args.windows * args.window, args.window)
    )
    scored = args.windows * (args.window - args.score_from)
    json.dump({"perplexity": math.exp(total / scored), "windows": args.windows, "scored_tokens": scored, "tokens": len(tokens)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
