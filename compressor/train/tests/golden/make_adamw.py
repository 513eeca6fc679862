#!/usr/bin/env python3
"""Trains a tiny Llama with PyTorch for a few steps, and writes what the trainer must reproduce.

    make_adamw.py            (environment: tests/interop/setup.sh)

Writes beside itself: adamw-student/ and adamw-teacher/ (config.json and model.safetensors, f32) and adamw.json with the settings, the
batches and what each step gave: losses, gradient norm, learning rate. The first run makes cross entropy small, the second the mix of cross
entropy and KL divergence. Weight decay acts on matrices alone; the learning rate rises in a line and falls as half a cosine.
"""
import json
import math
import pathlib

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
SETTINGS = {
    "steps": 6, "learning_rate": 0.01, "warmup_steps": 2, "min_learning_rate_ratio": 0.2, "beta_1": 0.9, "beta_2": 0.95,
    "epsilon": 1e-8, "weight_decay": 0.1, "gradient_clip": 0.5,
}  # fmt: skip
TEMPERATURE, KD_RATIO = 2.0, 0.6
ROWS, LENGTH, VOCAB = 3, 8, 32


def llama(hidden, heads, kv_heads, intermediate, layers):
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=intermediate,
        num_hidden_layers=layers, max_position_embeddings=16, tie_word_embeddings=True, initializer_range=0.2, use_cache=False,
        attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).float()


def save(model, name):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")
    state = {key: value.contiguous() for key, value in model.state_dict().items() if key != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def learning_rate(step):
    highest, warmup = SETTINGS["learning_rate"], SETTINGS["warmup_steps"]
    if step < warmup:
        return highest * (step + 1) / warmup
    progress = (step - warmup) / (SETTINGS["steps"] - warmup)
    smallest = SETTINGS["min_learning_rate_ratio"]
    return highest * (smallest + (1 - smallest) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(student, teacher, batches):
    decays = [p for p in student.parameters() if p.ndim == 2]
    keeps = [p for p in student.parameters() if p.ndim != 2]
    groups = [{"params": decays, "weight_decay": SETTINGS["weight_decay"]}, {"params": keeps, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(SETTINGS["beta_1"], SETTINGS["beta_2"]), eps=SETTINGS["epsilon"])
    steps = []
    for step, batch in enumerate(batches):
        tokens, targets, mask = (torch.tensor(batch[key]).view(ROWS, LENGTH) for key in ("tokens", "targets", "weights"))
        counts = mask.view(-1) != 0
        logits = student(tokens).logits.view(-1, VOCAB)[counts]
        cross_entropy = F.cross_entropy(logits, targets.view(-1)[counts])
        loss, divergence = cross_entropy, None
        if teacher is not None:
            with torch.no_grad():
                log_p = F.log_softmax(teacher(tokens).logits.view(-1, VOCAB)[counts] / TEMPERATURE, dim=-1)
            log_q = F.log_softmax(logits / TEMPERATURE, dim=-1)
            divergence = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
            loss = (1 - KD_RATIO) * cross_entropy + KD_RATIO * TEMPERATURE**2 * divergence
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), SETTINGS["gradient_clip"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        steps.append(
            {
                "loss": loss.item(), "cross_entropy": cross_entropy.item(), "kl": None if divergence is None else divergence.item(),
                "gradient_norm": norm.item(), "learning_rate": learning_rate(step),
            }  # fmt: skip
        )
    return steps


def main():
    torch.manual_seed(11)
    torch.set_num_threads(1)
    student, teacher = llama(16, 4, 2, 24, 2), llama(24, 4, 4, 32, 2)
    with torch.no_grad():
        # Norm weights other than one, so that a mistake in them shows.
        for model in (student, teacher):
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    save(student, "adamw-student")
    save(teacher, "adamw-teacher")
    start = {key: value.clone() for key, value in student.state_dict().items()}
    batches = []
    for _ in range(SETTINGS["steps"]):
        tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1))
        # A prompt that does not count, and one row that ends early.
        mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
        mask[:, :2], mask[1, 5:] = 0, 0
        batches.append(
            {"tokens": tokens[:, :-1].flatten().tolist(), "targets": tokens[:, 1:].flatten().tolist(), "weights": mask.flatten().tolist()}
        )
    runs = {}
    for name, learnt_from in (("cross_entropy", None), ("distill", teacher)):
        student.load_state_dict(start)
        runs[name] = train(student, learnt_from, batches)
    golden = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": SETTINGS, "temperature": TEMPERATURE, "kd_ratio": KD_RATIO, "rows": ROWS, "length": LENGTH,
        "batches": batches, "runs": runs,
    }  # fmt: skip
    (HERE / "adamw.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
