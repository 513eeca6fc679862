#!/usr/bin/env python3
"""PyTorch's side of the training benchmark: one teacher forward and one student step, on CPU in float32, as one JSON object.

    torch_step.py [--teacher-hidden 256 …] [--batch 8] [--sequence 128] [--threads 2]

Both models are Llama's with random weights. A step is what a distillation step is: the teacher's logits without gradients, the student's
logits, loss = (1 - kd_ratio) · cross entropy + kd_ratio · KL · temperature², mean per token; backward, clipping of the gradient's norm to 1, AdamW.
Prints the median over the measured steps; a token is a position of the batch (batch · sequence in a step). Environment: tests/interop/setup.sh.
"""
import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
import transformers
from transformers import LlamaConfig, LlamaForCausalLM


def llama(args, role):
    """The model of `role` ("teacher" or "student"), from the sizes in `args`."""
    size = {name: getattr(args, f"{role}_{name}") for name in SIZES}
    if size["heads"] % size["kv_heads"] or size["hidden"] % size["heads"]:
        sys.exit(f"{role}: hidden {size['hidden']}, heads {size['heads']} and kv-heads {size['kv_heads']} do not divide each other")
    config = LlamaConfig(
        hidden_size=size["hidden"], num_hidden_layers=size["layers"], num_attention_heads=size["heads"], num_key_value_heads=size["kv_heads"],
        intermediate_size=size["ff"], vocab_size=args.vocab, max_position_embeddings=args.sequence, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


# Default sizes: (teacher, student).
SIZES = {"hidden": (256, 128), "layers": (6, 4), "heads": (8, 4), "kv_heads": (4, 2), "ff": (768, 384)}


def distillation_loss(student_logits, teacher_logits, targets, temperature, kd_ratio):
    """Mean per token. Logits [tokens, vocab], targets [tokens]."""
    cross_entropy = F.cross_entropy(student_logits, targets)
    log_q = F.log_softmax(student_logits / temperature, dim=-1)
    log_p = F.log_softmax(teacher_logits / temperature, dim=-1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    return (1 - kd_ratio) * cross_entropy + kd_ratio * temperature**2 * divergence


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for index, role in enumerate(("teacher", "student")):
        for name, defaults in SIZES.items():
            parser.add_argument(f"--{role}-{name.replace('_', '-')}", type=int, default=defaults[index])
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--kd-ratio", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(7)

    teacher, student = llama(args, "teacher").eval().requires_grad_(False), llama(args, "student").train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.01)
    seconds = {"teacher": [], "student": [], "step": []}
    for step in range(args.warm_up + args.steps):
        tokens = torch.randint(args.vocab, (args.batch, args.sequence + 1))
        inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
        started = time.perf_counter()
        with torch.no_grad():
            teacher_logits = teacher(inputs).logits.view(-1, args.vocab)
        forwarded = time.perf_counter()
        loss = distillation_loss(student(inputs).logits.view(-1, args.vocab), teacher_logits, targets, args.temperature, args.kd_ratio)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        ended = time.perf_counter()
        if step >= args.warm_up:
            seconds["teacher"].append(forwarded - started)
            seconds["student"].append(ended - forwarded)
            seconds["step"].append(ended - started)

    median = {name: statistics.median(values) for name, values in seconds.items()}
    json.dump(
        {
            "tokens_per_second": args.batch * args.sequence / median["step"],
            "teacher_seconds": median["teacher"],
            "student_seconds": median["student"],
            "step_seconds": median["step"],
            "step_seconds_min": min(seconds["step"]),
            "step_seconds_max": max(seconds["step"]),
            "last_loss": loss.item(),
            "teacher_parameters": sum(parameter.numel() for parameter in teacher.parameters()),
            "student_parameters": sum(parameter.numel() for parameter in student.parameters()),
            "settings": vars(args),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
