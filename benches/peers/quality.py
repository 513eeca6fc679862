#!/usr/bin/env python3
"""Mean KL divergence from the dense model by bytes of all files: llama.cpp's types and this program's artifacts of the same weights.

    quality.py MODEL_DIR --compressor PROGRAM --peers FOLDER [--windows 40] [--calibration-tokens 65536] [--only NAME…]
               [--markdown FILE] [--plot FILE.svg]

llama.cpp quantizes with an importance matrix, ours with GPTQ and clipping weighted by activations, both from the first
--calibration-tokens of WikiText-2's train text in windows of 512. Both run with the INT8 activations that they run
with, unless a name says otherwise. Measured on the
test text in windows of 512, tokens 257…511 scored; the reference is the same weights in f32, each program's own. Their perplexities must
agree, or the windows are not the same.

Points are kept in FOLDER/quality-points, by a hash of what they depend on.
"""
import argparse
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import table

WINDOW, FIRST_SCORED = 512, 257
# llama.cpp's types that SmolLM2's widths allow, and what it falls back to where they do not.
THEIRS = ["IQ2_M", "IQ4_XS", "IQ4_NL", "Q4_1", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
CALIBRATED = 'method = "gptq"\nclipping = "activation"\n'
# Ours: targets in MB of weights, tokenizer and all on top; then single schemes.
TARGETS = [62, 78, 89.5, 103.5, 110]
# Keys of the quantization, and of the verification.
SCHEMES = {
    "INT2 g16, embedding INT3": (f'bits = 2\ngroup_size = 16\nembedding = "int3"\n{CALIBRATED}', ""),
    "INT8 g64, activations f32": (f"bits = 8\ngroup_size = 64\nembedding_group_size = 64\n{CALIBRATED}", 'activations = "f32"'),
    "INT8 per channel, activations f32": (f"bits = 8\n{CALIBRATED}", 'activations = "f32"'),
}
RECIPE = """name = "quality"
dataset = "datasets/wikitext-2.toml"
model.path = {model}
output = {output}
[[stage]]
[stage.quantize]
calibration_tokens = {tokens}
{keys}
[[stage]]
[stage.verify]
windows = {windows}
{measured}
"""


def run(command, **more):
    """Standard output of a program that must end with 0."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    if done.returncode != 0:
        sys.exit(f"quality.py: {' '.join(command)} ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def kept(folder, name, key, measure):
    """What `measure` finds, from `folder` where the same was asked before."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}-{digest}.json"
    if not path.exists():
        print(f"measuring {name}", file=sys.stderr)
        found = json.dumps(measure())
        path.write_text(found, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def theirs(args, folder, texts):
    """llama.cpp's points, and the perplexity of its reference."""
    if not any(args.wants(kind) for kind in THEIRS):
        return []
    files = table.make_gguf(args.model_dir, args.peers)
    quality, threads = args.peers / "quality", os.cpu_count()
    made = files["F32"].parent / f"importance-{args.calibration_tokens}"
    if not made.exists():
        print(f"making {made}", file=sys.stderr)
        unfinished = made.with_suffix(".tmp")
        run([quality, "importance", files["F32"], texts / "train.txt", args.calibration_tokens, WINDOW, threads, unfinished])
        unfinished.replace(made)
    paths = {kind: files["F32"].parent / f"{kind}-{args.calibration_tokens}.gguf" for kind in THEIRS if args.wants(kind)}
    for kind, path in paths.items():
        if not path.exists():
            print(f"making {path}", file=sys.stderr)
            unfinished = path.with_suffix(".tmp")
            run([quality, "quantize", files["F32"], unfinished, kind, made, threads])
            unfinished.replace(path)

    def measure():
        # All at once: the reference, four times as large as they are, is computed once.
        text = [texts / "test.txt", args.windows, WINDOW, FIRST_SCORED, threads]
        reference, *found = map(json.loads, run([quality, "divergence", files["F32"], *text, *paths.values()]).splitlines())
        sizes = [path.stat().st_size for path in paths.values()]
        return [{**point, "reference": reference["perplexity"], "bytes": size} for point, size in zip(found, sizes)]

    key = [sha256(path) for path in [*paths.values(), texts / "test.txt", table.HERE / "quality.cpp"]] + [args.windows]
    found = kept(folder, "llama.cpp", key, measure)
    return [{"name": f"llama.cpp {kind}", "ours": False, **point} for kind, point in zip(paths, found)]


def ours(args, folder):
    """This program's points."""
    wanted = {f"target {target} MB": (f'target_bytes = "{target} MB"\n{CALIBRATED}', "") for target in TARGETS} | SCHEMES
    points = []
    for name, (keys, measured) in [(name, keys) for name, keys in wanted.items() if args.wants(name)]:

        def measure(keys=keys, measured=measured):
            recipe = folder / "recipe.toml"
            output = folder / "run"
            values = {"model": json.dumps(str(args.model_dir.resolve())), "output": json.dumps(str(output)), "windows": args.windows}
            recipe.write_text(RECIPE.format(keys=keys, measured=measured, tokens=args.calibration_tokens, **values), encoding="utf-8")
            report = json.loads(run([args.compressor, "run", recipe, "--json"], cwd=table.HERE.parents[1]))
            quantized, verified = report["stages"]
            checks = {check["name"]: check["value"] for check in report["checks"]}
            perplexity = verified["perplexity"]["value"]
            return {
                "perplexity": perplexity,
                "reference": perplexity / (1 + checks["perplexity increase"]),
                "kl_mean": checks["KL divergence, mean"],
                "top1_agreement": checks["top-1 agreement"],
                "bytes": int(checks["artifact bytes"]),
                "kl_sum": (quantized["details"].get("budget") or {}).get("kl_sum"),
                "seconds": quantized["seconds"],
            }

        key = [keys, measured, sha256(args.compressor), sha256(args.model_dir / "model.safetensors"), args.windows, args.calibration_tokens]
        points.append({"name": f"compressor {name}", "ours": True, **kept(folder, name, key, measure)})
    return points


def best_within(points, at):
    """Mean KL of the best of `points` within `at` bytes."""
    return min((point["kl_mean"] for point in points if point["bytes"] <= at), default=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=pathlib.Path)
    parser.add_argument("--compressor", type=pathlib.Path, required=True)
    parser.add_argument("--peers", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--calibration-tokens", type=int, default=65536)
    parser.add_argument("--only", nargs="+", help="parts of the names that are wanted")
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args()
    args.wants = lambda name: not args.only or any(part in name for part in args.only)
    texts = pathlib.Path(os.environ["COMPRESSOR_DATA_WIKITEXT2"])
    folder = args.peers / "quality-points"
    folder.mkdir(exist_ok=True)
    points = theirs(args, folder, texts) + ours(args, folder)
    if not points:
        sys.exit("quality.py: --only leaves nothing")
    references = [point["reference"] for point in points]
    if max(references) / min(references) > 1.0005:
        sys.exit(f"quality.py: the references differ, {min(references)} to {max(references)}: not the same windows")
    points.sort(key=lambda point: point["bytes"])
    others = [point for point in points if not point["ours"]]
    rows = []
    for point in points:
        # llama.cpp always rounds its activations: beside those as they are, there is nothing of its own.
        is_compared = point["ours"] and "activations f32" not in point["name"]
        best = best_within(others, point["bytes"]) if is_compared else None
        ratio = f"{point['kl_mean'] / best:.2f}" if best else ""
        figures = [f"{point['bytes'] / 1e6:.1f}", f"{point['kl_mean']:.4f}", ratio, f"{point['perplexity']:.3f}"]
        rows.append([point["name"], *figures, f"{100 * point['top1_agreement']:.1f} %"])
    columns = ["model", "all files, MB", "mean KL", "× best llama.cpp of no more bytes", "perplexity", "top-1"]
    head = [f"- windows {args.windows} of {WINDOW}, scored from {FIRST_SCORED}; calibration tokens {args.calibration_tokens}"]
    head.append(f"- perplexity of the weights in f32: {min(references):.4f} to {max(references):.4f}")
    text = "\n".join([*head, "", table.markdown(columns, rows)]) + "\n"
    print(text, end="")
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    if args.plot:
        plot(points, args.plot)


def plot(points, path):
    import matplotlib.pyplot as pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, is_ours, style in [("llama.cpp", False, "s--"), ("compressor", True, "o-")]:
        of = [point for point in points if point["ours"] == is_ours and (not is_ours or "target" in point["name"])]
        axes.plot([point["bytes"] / 1e6 for point in of], [point["kl_mean"] for point in of], style, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("bytes of all files, MB")
    axes.set_ylabel("mean KL divergence, nats per token")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    main()
