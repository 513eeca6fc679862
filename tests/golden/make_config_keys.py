#!/usr/bin/env python3
"""Makes config_keys.json: what Transformers answers where one key of a golden model's config.json is another.

    make_config_keys.py [--out tests/golden/config_keys.json]

Every key that Transformers can read of a family's configuration is set to other values, taken away and set to null: the fields of its
class and of PreTrainedConfig, other names of these, what `__post_init__` takes, generation settings, and every name that the code of
the model, of its masks, its cache and its rotary embedding asks a configuration for. Of the Llama with scaled frequencies these are
only the keys of its rotary embedding. Combinations that one key can't make stand in
`TOGETHER`, heads that lie beside tied embeddings in `HEADS`. For each of them the file has one line:

    set       keys of config.json, with their values
    remove    keys that are taken away
    head      what becomes of the head's tensor: "copy" of the embedding, the embedding "reversed" row by row, or "alone": renamed to it
    answer    "same" as the model's own, "other", or "refused" with Transformers' reason; weights that do not fit count as refused
    logits    where it is "other": the first 32 of the prompt's last token, computed in float32
    ends      the tokens that end a text, where eos_token_id is what was changed

Environment: tests/interop/setup.sh.
"""
import argparse
import dataclasses
import inspect
import json
import os
import pathlib
import re
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
import safetensors  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig  # noqa: E402
from transformers.activations import ACT2CLS  # noqa: E402

MODELS = pathlib.Path(__file__).parent / "models"
# Two of Llama: only where frequencies are scaled do the keys of the scaling change anything.
NAMES = ["llama", "llama3-rope", "mistral", "qwen2", "qwen3", "gpt2"]
LOGITS = 32
# What may differ between two orders of the same sums. Nothing that a key changes on purpose is this small.
SAME = 2e-6

# The family itself, what artifacts are read by, and the file's own name.
SKIPPED = {"model_type", "quantization_config", "json"}

LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}

VALUES = {
    "rope_scaling": [
        {}, LINEAR, LINEAR | {"rope_theta": 500.0}, {"type": "linear", "factor": 2.0}, {"rope_type": None, "type": "linear", "factor": 2.0},
        {"factor": 2.0}, {"rope_type": "linear"}, LINEAR | {"factor": 0.5}, LINEAR | {"original_max_position_embeddings": 32}, {"type": "default"},
        LINEAR | {"type": "default"}, LINEAR | {"partial_rotary_factor": 0.5}, LINEAR | {"partial_rotary_factor": 1.0},
        LLAMA3, LLAMA3 | {"original_max_position_embeddings": 16}, LLAMA3 | {"original_max_position_embeddings": None}, LLAMA3 | {"rope_theta": 100.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, {"rope_type": "dynamic", "factor": 4.0},
        {"type": "yarn", "factor": 4.0}, {"rope_type": "proportional"}, {"rope_type": "mrope", "mrope_section": [1, 1, 2]}, {"rope_type": "no such"},
        {"rope_type": "longrope", "short_factor": [2.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16},
        {"full_attention": LINEAR}, 2.0, "linear",
    ],
    "rope_parameters": [
        {}, LINEAR, LINEAR | {"rope_theta": 500.0}, {"rope_theta": 500.0}, {"type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        {"rope_type": None, "type": "linear", "factor": 2.0, "rope_theta": 10000.0}, DEFAULT | {"factor": 2.0}, DEFAULT | {"partial_rotary_factor": 0.5},
        DEFAULT | {"rope_theta": None}, LLAMA3 | {"rope_theta": 100.0}, {"full_attention": LINEAR | {"rope_theta": 10000.0}},
        {"full_attention": DEFAULT, "sliding_attention": DEFAULT},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0},
    ],
    "rope_theta": [500.0, 500],
    "partial_rotary_factor": [0.5, 1.0],
    "original_max_position_embeddings": [16],
    "is_causal": [False, True],
    "layer_types": [
        ["full_attention", "full_attention"], ["sliding_attention", "full_attention"], ["full_attention", "sliding_attention"],
        ["sliding_attention", "sliding_attention"], ["full_attention"], ["attention", "attention"], ["linear_attention", "full_attention"],
    ],
    "sliding_window": [4, 23, 24, 64, 4096],
    "max_window_layers": [0, 1, 2],
    "num_key_value_heads": [1, 4],
    "head_dim": [4, 16],
    "hidden_act": sorted(ACT2CLS) + ["no such"],
    "activation_function": sorted(ACT2CLS) + ["no such"],
    "eos_token_id": [5, -1, [5, 6], [5, -1], 1000, "5"],
    "bos_token_id": [5, -1, 1000],
    "pad_token_id": [0, -1, 2],
    "dtype": ["float16", "bfloat16", "float64"],
    "torch_dtype": ["float16", "bfloat16"],
    "architectures": [["LlamaForSequenceClassification"], ["GPT2Model"], []],
    "per_layer_config": [{"0": {"intermediate_size": 32}}, {"1": {"skip": ["mlp"]}}, {"0": {"rms_norm_eps": 0.1, "layer_norm_epsilon": 0.1}}],
    "id2label": [{"0": "no", "1": "yes", "2": "perhaps"}],
    "label2id": [{"no": 0}],
    "problem_type": ["regression", "single_label_classification"],
    "output_attentions": [True],
    "attn_implementation": ["sdpa", "eager"],
    "_attn_implementation": ["sdpa"],
    "text_config": [{"model_type": "llama", "hidden_size": 8}],
    "n_inner": [None, 128, 32],
    "vocab_size": [95, 97],
}  # fmt: skip

TOGETHER = {
    "rotary": [
        {"remove": ["rope_parameters"]},
        {"remove": ["rope_parameters"], "set": {"rope_theta": 500.0}},
        {"remove": ["rope_parameters"], "set": {"rope_theta": 500.0, "rope_scaling": LINEAR}},
        {"remove": ["rope_parameters"], "set": {"rope_theta": 100.0, "rope_scaling": LLAMA3}},
        {"remove": ["rope_parameters"], "set": {"rope_theta": 100.0, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}},
        {"set": {"rope_theta": 100.0, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}, "original_max_position_embeddings": 16}},
        {"set": {"rope_theta": 500.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}},
        {"set": {"rope_theta": 500.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}},
        {"set": {"rope_theta": 500.0, "rope_parameters": LINEAR, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}},
        {"set": {"rope_parameters": LINEAR, "rope_scaling": {"rope_type": "default"}}},
        {"set": {"rope_parameters": LINEAR, "rope_scaling": {}}},
        {"set": {"rope_parameters": None, "rope_scaling": None}},
        {"set": {"partial_rotary_factor": 0.5, "rope_scaling": LINEAR}},
        {"set": {"partial_rotary_factor": 1.0, "rope_scaling": LINEAR}},
        {"set": {"hidden_size": 32.0}},
        {"set": {"sliding_window": 4, "max_position_embeddings": 4}},
        {"set": {"sliding_window": 24, "max_position_embeddings": 24}},
        {"set": {"sliding_window": 64, "max_position_embeddings": 64}},
        {"set": {"max_position_embeddings": 8192}, "remove": ["sliding_window"]},
        {"set": {"max_position_embeddings": 4096}, "remove": ["sliding_window"]},
        {"set": {"num_key_value_heads": None}},
        {"remove": ["num_key_value_heads", "head_dim"]},
        {"set": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "remove": ["layer_types"]},
        {"set": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "remove": ["layer_types"]},
        {"set": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}, "remove": ["layer_types"]},
        {"set": {"use_sliding_window": True, "sliding_window": 4}, "remove": ["layer_types", "max_window_layers"]},
        {"set": {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, "remove": ["layer_types"]},
        {"set": {"use_sliding_window": True, "max_window_layers": 0}, "remove": ["layer_types", "sliding_window"]},
        {"set": {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, "remove": ["layer_types"]},
        {"set": {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0}, "remove": ["layer_types"]},
        {"set": {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "full_attention"]}},
        {"set": {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}},
        {"set": {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}},
        {"set": {"use_sliding_window": False, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}},
    ],
    "gpt2": [
        {"remove": ["n_embd"], "set": {"hidden_size": 32}},
        {"remove": ["n_embd", "n_head", "n_layer", "n_positions"],
         "set": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 64}},
        {"set": {"num_attention_heads": 2}},
        {"set": {"n_ctx": 128}},
        {"set": {"scale_attn_weights": False, "reorder_and_upcast_attn": True}},
        {"set": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}},
    ],
}  # fmt: skip

HEADS = [
    {"head": "copy"}, {"head": "reversed"}, {"head": "alone"}, {"head": "reversed", "set": {"tie_word_embeddings": True}},
    {"head": "alone", "set": {"tie_word_embeddings": True}}, {"head": "reversed", "remove": ["tie_word_embeddings"]},
    {"head": "alone", "remove": ["tie_word_embeddings"]}, {"head": "reversed", "set": {"tie_word_embeddings": False}},
]  # fmt: skip


def keys_of(config):
    """Every key that Transformers can read of such a configuration."""
    kind = type(config)
    keys = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    keys |= set(GenerationConfig._get_default_generation_params())
    library = pathlib.Path(transformers.__file__).parent
    own = library / "models" / kind.model_type
    sources = [own / f"modeling_{kind.model_type}.py", own / f"configuration_{kind.model_type}.py"]
    sources += [library / f"{name}.py" for name in ["modeling_utils", "masking_utils", "cache_utils", "modeling_rope_utils"]]
    for text in [source.read_text() for source in sources]:
        keys |= set(re.findall(r"""getattr\(\s*(?:self\.)?\w*config(?:\.get_text_config\([^)]*\))?,\s*"(\w+)\"""", text))
        keys |= {key for key in re.findall(r"\bconfig\.([a-z]\w*)", text) if not callable(getattr(kind, key, None))}
    for taken in [kind.__post_init__, PreTrainedConfig.__post_init__, kind.convert_rope_params_to_dict]:
        keys |= set(re.findall(r"""kwargs(?:\.pop\(|\.get\(|\[)"(\w+)\"""", inspect.getsource(taken)))
    return sorted(keys - SKIPPED)


def others(key, config):
    """Values of a key that are not the model's own."""
    if key in VALUES:
        return VALUES[key]
    value = config.get(key, getattr(AutoConfig.for_model(config["model_type"]), key, None))
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value]
    if isinstance(value, float):
        return [value * 2 + 0.1]
    if isinstance(value, str):
        return ["other"]
    return [True, 3, "other"]


def cases_of(name, config):
    """What is changed, one case after the other: the keys themselves, combinations, heads."""
    keys = keys_of(AutoConfig.for_model(config["model_type"]))
    for key in [key for key in keys if name != "llama3-rope" or re.search("rope|rotary|position|theta", key)]:
        for value in others(key, config) + [None]:
            if key not in config or config[key] != value:
                yield {"set": {key: value}}
        if key in config:
            yield {"remove": [key]}
    yield from TOGETHER["gpt2" if config["model_type"] == "gpt2" else "rotary"]
    if name != "llama3-rope":
        yield from HEADS


def changed_head(tensors, config, change):
    """The tensors with `change` made to the head."""
    embedding = "transformer.wte.weight" if config["model_type"] == "gpt2" else "model.embed_tokens.weight"
    tensors = dict(tensors)
    if change == "copy":
        tensors["lm_head.weight"] = tensors[embedding].clone()
    elif change == "reversed":
        tensors["lm_head.weight"] = tensors[embedding].flip(0).contiguous()
    elif change == "alone":
        tensors["lm_head.weight"] = tensors.pop(embedding)
    return tensors


@torch.no_grad()
def answer(folder, input_ids):
    """Logits of the last token and the model; `ValueError` where weights do not fit."""
    model, about = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, trust_remote_code=False
    )
    unfit = {what: sorted(map(str, about[what])) for what in ["missing_keys", "mismatched_keys"] if about.get(what)}
    if unfit:
        raise ValueError(f"weights do not fit: {', '.join(f'{what} {names[0]}' for what, names in unfit.items())}")
    return model.eval()(input_ids[None], use_cache=False, return_dict=True).logits[0, -1].float(), model


def judged(case, folder, config, tensors, input_ids, base):
    """`case` with Transformers' answer to it."""
    changed = {key: value for key, value in config.items() if key not in case.get("remove", [])} | case.get("set", {})
    (folder / "config.json").write_text(json.dumps(changed))
    if "head" in case:
        (folder / "model.safetensors").unlink()
        save_file(changed_head(tensors, config, case["head"]), folder / "model.safetensors", {"format": "pt"})
    try:
        logits, model = answer(folder, input_ids)
    except Exception as error:  # noqa: BLE001 Whatever stops Transformers is a refusal.
        text = " ".join(f"{type(error).__name__}: {error}".split()).replace(str(folder), "…")
        return case | {"answer": "refused", "reason": text[:70]}
    finally:
        if "head" in case:
            (folder / "model.safetensors").unlink()
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    result = case | {"answer": "same"}
    if not torch.isfinite(logits).all() or logits.shape != base.shape or (logits - base).abs().max() > SAME:
        result |= {"answer": "other", "logits": [round(value, 6) for value in logits[:LOGITS].tolist()]}
    if "eos_token_id" in case.get("set", {}) or "eos_token_id" in case.get("remove", []):
        ends = model.generation_config.eos_token_id
        result["ends"] = ends if isinstance(ends, list) else [ends] if ends is not None else []
    return result


def make(name):
    """One golden model's cases with their answers."""
    config = json.loads((MODELS / name / "config.json").read_text())
    tensors = load_file(MODELS / name / "model.safetensors")
    input_ids = load_file(MODELS / name / "golden.safetensors")["input_ids"]
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        shutil.copy(MODELS / name / "model.safetensors", folder)
        (folder / "config.json").write_text(json.dumps(config))
        base, _ = answer(folder, input_ids)
        return [judged(case, folder, config, tensors, input_ids, base) for case in cases_of(name, config)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "config_keys.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, safetensors {safetensors.__version__}"
    models = []
    for name in NAMES:
        cases = make(name)
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        models.append(f'{json.dumps(name)}: [\n{lines}\n]')
        counts = {kind: sum(case["answer"] == kind for case in cases) for kind in ["same", "other", "refused"]}
        print(name, counts, flush=True)
    out.write_text(f'{{"versions": {json.dumps(versions)},\n"models": {{\n' + ",\n".join(models) + "\n}}\n")
    print(out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
