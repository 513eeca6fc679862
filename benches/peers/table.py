#!/usr/bin/env python3
"""llama.cpp and this program on the same model, in turn in one run, as one Markdown table of medians.

    table.py MODEL_DIR --compressor PROGRAM --peers FOLDER [--rounds 7] [--threads 1 2] [--markdown FILE]

PROGRAM is a built `compressor`; FOLDER is what setup.sh prints. llama.cpp's GGUF files are made once and kept in FOLDER; our artifacts,
which take seconds, are made again in every run, so that they are PROGRAM's.

A round measures every model with every number of threads. Each figure of each model is a process of its own, llama.cpp's directly beside
ours, in every other round in reverse order:

- prompt: 512 tokens in one batch, logits of the last alone
- generate: 128 tokens one by one, each the likeliest, after a prompt of one
- load → first token: loading, then a prompt of 16
- peak MB: resident memory, mapped files included, of the largest of these three processes

Both run the prompt once to warm up before the first two. × is ours ÷ llama.cpp's.
"""
import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# What a model's folder must have.
FILES = ("config.json", "tokenizer.json", "model.safetensors")
# Of each process: tokens of the prompt, tokens to generate, llama.cpp's passes to warm up.
PROCESSES = {"prompt": (512, 1, 1), "generate": (1, 128, 1), "first token": (16, 1, 0)}
# Digits behind the point of each figure.
FIGURES = {"prompt tok/s": 0, "generate tok/s": 1, "load → first token ms": 1, "peak MB": 0}
SPEEDS = ("prompt tok/s", "generate tok/s")
# llama.cpp's types, and what of ours stands beside each: name and flags of `compressor quantize`, None for the folder itself.
BLOCKS = {
    "F32": {"dense": None},
    "F16": {"dense": None},
    "Q8_0": {"INT8 per channel": "--bits 8", "INT8 g32": "--bits 8 --group-size 32"},
    "Q4_0": {
        "INT4 g32, embedding INT8": "--bits 4 --group-size 32 --embedding int8",
        "INT4 g32, embedding INT4": "--bits 4 --group-size 32 --embedding int4",
    },
}
# A prompt that both must continue alike before they are compared.
PROBE, PROBE_TOKENS = ["504", "3575", "282", "4649", "314"], 16


@dataclasses.dataclass(eq=False)  # Two blocks may hold the same model.
class Contender:
    """A model as one of the two programs runs it."""

    program: pathlib.Path
    ours: bool
    name: str
    path: pathlib.Path  # what the program opens
    weights: pathlib.Path  # the file with the weights

    def command(self, threads, prompt_tokens, generate_tokens, warm_ups):
        if not self.ours:
            return [self.program, "bench", self.path, threads, prompt_tokens, generate_tokens, warm_ups]
        lengths = ["--prompt-tokens", prompt_tokens, "--generate-tokens", generate_tokens]
        return [self.program, "--threads", threads, "bench", self.path, "--json", *lengths]


def run(command):
    """Standard output and peak resident bytes of a process that must end with 0."""
    command = [str(part) for part in command]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        with child.stdout:
            output = child.stdout.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            errors.seek(0)
            sys.exit(f"table.py: {shlex.join(command)} ended with {child.returncode}:\n{errors.read().decode(errors='replace').strip()}")
    return output, usage.ru_maxrss * 1024


def own_peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(contenders, threads):
    """One round of one block: the figures of each contender, the processes of one kind directly after one another."""
    found, peak_bytes = {contender: {} for contender in contenders}, dict.fromkeys(contenders, 0)
    for process, lengths in PROCESSES.items():
        for contender in contenders:
            output, peak = run(contender.command(threads, *lengths))
            found[contender][process] = json.loads(output)
            # A process starts with the peak of the one that started it.
            if peak <= own_peak():
                sys.exit(f"table.py: {contender.name} takes no more memory than this script, {own_peak()} bytes: its peak can't be told")
            peak_bytes[contender] = max(peak_bytes[contender], peak)
    return {
        contender: {
            "prompt tok/s": of["prompt"]["prompt_tokens_per_second"],
            "generate tok/s": of["generate"]["generate_tokens_per_second"],
            "load → first token ms": of["first token"]["load_milliseconds"] + of["first token"]["first_token_milliseconds"],
            "peak MB": peak_bytes[contender] / 1e6,
        }
        for contender, of in found.items()
    }


def make_gguf(model, peers):
    """The model's GGUF files by type, made where they are missing, in a folder named by the content of what they are made from."""
    content = hashlib.sha256()
    for path in [*(model / name for name in FILES), HERE / "make_gguf.py", HERE / "requirements.txt"]:
        with open(path, "rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    folder = peers / "models" / f"{model.name}-{content.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"{kind}.gguf" for kind in BLOCKS}
    for kind, path in files.items():
        if path.exists():
            continue
        print(f"making {path}", file=sys.stderr)
        if kind == "F32":
            run([peers / "venv/bin/python", HERE / "make_gguf.py", model, path])
        else:
            unfinished = path.with_name(path.name + ".tmp")
            run([peers / "peer", "quantize", files["F32"], unfinished, kind.lower()])
            unfinished.replace(path)
    return files


def make_blocks(model, compressor, peers):
    """[[llama.cpp's contender, ours, …], …]"""
    files = make_gguf(model, peers)
    blocks = []
    for kind, variants in BLOCKS.items():
        block = [Contender(peers / "peer", False, f"llama.cpp {kind}", files[kind], files[kind])]
        for name, flags in variants.items():
            path = model
            if flags is not None:
                path = files[kind].parent / name.replace(", ", "-").replace(" ", "-").lower()
                shutil.rmtree(path, ignore_errors=True)
                print(f"making {path}", file=sys.stderr)
                run([compressor, "quantize", model, path, *flags.split()])
            block.append(Contender(compressor, True, f"compressor {name}", path, path / "model.safetensors"))
        blocks.append(block)
    return blocks


def check_same_model(block):
    """Both continue the probe with the same tokens: the GGUF file is the same model."""
    theirs, ours = block[:2]
    by_theirs = run([theirs.program, "greedy", theirs.path, 1, PROBE_TOKENS, *PROBE])[0].split()
    flags = ["--prompt-ids", " ".join(PROBE), "-n", PROBE_TOKENS, "--ids", "--ignore-end"]
    by_ours = run([ours.program, "generate", ours.path, *flags])[0].split()
    if by_theirs != by_ours or len(by_ours) != PROBE_TOKENS:
        sys.exit(f"table.py: not the same model: {ours.name} and {theirs.name} continue {PROBE} with\n  {by_ours}\n  {by_theirs}")


def machine(args, load):
    """The lines above the table."""

    def first_line(*command):
        return run(command)[0].splitlines()[0].strip()

    def field(path, name):
        with open(path, encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(name)), "unknown")

    packages = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    package = next(line for line in packages if line.startswith("llama-cpp-python=="))
    flags = (args.peers / "flags").read_text().strip()
    version, system = run([args.peers / "peer", "version"])[0].strip().split("\n")
    memory_bytes = int(field("/proc/meminfo", "MemTotal").split()[0]) * 1024
    commit = "not a git checkout"
    if (HERE.parents[1] / ".git").exists():
        commit = first_line("git", "-C", HERE, "describe", "--always", "--dirty")
    compilers = f"{first_line(os.environ.get('CXX', 'c++'), '--version')}; {first_line('rustc', '--version')}"
    return [
        f"- command: `benches/peers/run.sh {args.model_dir.name} --rounds {args.rounds} --threads {' '.join(map(str, args.threads))}`",
        f"- processor: {field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores; memory {memory_bytes / 1e9:.0f} GB",
        f"- system: {platform.system()} {platform.release()}; {compilers}; load average before the run {load:.2f}",
        f"- ours: {first_line(args.compressor, '--version')}, {commit}",
        f"- llama.cpp: {package}, {version}, compiled with {flags}; {system.strip(' |')}",
        f"- medians of {args.rounds} round{'s' if args.rounds > 1 else ''}; × is ours ÷ llama.cpp's of the same block",
    ]


def markdown(columns, rows):
    """A Markdown table whose columns are aligned as text, too: names left, figures right."""
    widths = [max(len(row[at]) for row in [columns, *rows]) for at in range(len(columns))]

    def line(cells):
        aligned = (cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(zip(cells, widths)))
        return "| " + " | ".join(aligned) + " |"

    dashes = "|" + "|".join("-" * (width + 1) + ":" if at else "-" * (width + 2) for at, width in enumerate(widths)) + "|"
    return "\n".join([line(columns), dashes, *map(line, rows)])


def tables(blocks, threads, results):
    """The medians, and the least and the largest of each figure. `results[threads][contender]` has the figures of each round."""
    medians, spreads = [], []
    for block in blocks:
        for count in threads:
            theirs = results[count][block[0]]
            for contender in block:
                of = results[count][contender]
                median, spread = [contender.name, str(count)], [contender.name, str(count)]
                median.insert(1, f"{contender.weights.stat().st_size / 1e6:.0f}")
                for figure, digits in FIGURES.items():
                    values = [one[figure] for one in of]
                    median.append(f"{statistics.median(values):.{digits}f}")
                    spread.append(f"{min(values):.{digits}f}–{max(values):.{digits}f}")
                    if figure in SPEEDS:
                        ratios = [value / other[figure] for value, other in zip(values, theirs)]
                        ratio = statistics.median(values) / statistics.median(other[figure] for other in theirs)
                        median.append(f"{ratio:.2f}" if contender.ours else "")
                        spread.append(f"{min(ratios):.2f}–{max(ratios):.2f}" if contender.ours else "")
                medians.append(median)
                spreads.append(spread)
    columns = [column for figure in FIGURES for column in ((figure, "×") if figure in SPEEDS else (figure,))]
    return markdown(["model", "file MB", "threads", *columns], medians), markdown(["least–largest", "threads", *columns], spreads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=pathlib.Path)
    parser.add_argument("--compressor", type=pathlib.Path, required=True)
    parser.add_argument("--peers", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, must be at least 1")
    if min(args.threads) < 1 or len(set(args.threads)) != len(args.threads):
        parser.error(f"--threads is {args.threads}, must be different numbers of at least 1")
    model = args.model_dir = args.model_dir.resolve()
    for name in FILES:
        if not (model / name).is_file():
            parser.error(f"{model / name} is not there; MODEL_DIR is a Hugging Face folder with a Llama, SmolLM2-135M for example")
    if args.markdown and not args.markdown.resolve().parent.is_dir():
        parser.error(f"--markdown {args.markdown}: its folder is not there")

    load = os.getloadavg()[0]
    blocks = make_blocks(model, args.compressor, args.peers)
    check_same_model(blocks[0])
    head = machine(args, load)
    results = {count: {contender: [] for block in blocks for contender in block} for count in args.threads}
    for number in range(args.rounds):
        for block in blocks:
            for count in args.threads:
                print(f"round {number + 1} of {args.rounds}: {block[0].name}, threads {count}", file=sys.stderr)
                for contender, figures in measure(block[:: -1 if number % 2 else 1], count).items():
                    results[count][contender].append(figures)
    text = "\n".join([*head, "", "\n\n".join(tables(blocks, args.threads, results))]) + "\n"
    print(text, end="")
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
