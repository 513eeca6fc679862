"""Small tokenizers of every kind that real models have, with what the `tokenizers` library makes of texts.

    python3 tests/golden/make_tokenizers.py

Written with tokenizers 0.23.3. The components are those of the models named; vocabularies are trained on this file's texts.
`tokenizers.json` holds, for each: the tokenizer.json, and for each text the ids with and without special tokens, and the text of them.
"""
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = ["Once upon a time there was a small dog that liked to run in the garden.", "Where's Lisbon? In 1755 it shook: 12,345 houses fell!",
          "def f(x):\n    return x**2 + 3\n", "Größe, naïveté, Ελλάδα, 日本語のテキスト, 한국어, 😀"] * 4
TEXTS = ["", " ", "hello", "Once upon a time, 12345 dogs'll  run!\n\n  ok\t", "e\u0301 naïve Größe", "日本語 テキスト", "😀 ﷺ \u200d x", "a</s>b <s> c",
         "def f(x):\r\n\treturn x\n", "<unk><0x41>", "  two  spaces  ", "\u0001\u0000control"]
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join([r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                  r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BOS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
ends_with = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)])
level = lambda use_regex=True: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
isolated = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(pre, normalizer=None, post=None, ignore_merges=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.normalizer, t.pre_tokenizer, t.decoder = normalizer, pre, decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, show_progress=False, special_tokens=SPECIAL,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if post:
        t.post_processor = post
    return t


def sentencepiece_bpe(normalizer, pre, decoder, post=BOS):
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer, t.pre_tokenizer = normalizer, pre
    t.train_from_iterator([text.replace("日本", "") for text in CORPUS], trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=SPECIAL + BYTES, limit_alphabet=60))
    whole = json.loads(t.to_str())
    whole["added_tokens"] = whole["added_tokens"][:3]
    t = Tokenizer.from_str(json.dumps(whole))
    t.decoder, t.post_processor = decoder, post
    return t


def unigram(normalizer, pre, decoder, post, byte_fallback):
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)] + [(byte, -10.0) for byte in BYTES]
    words = ["▁", "▁once", "▁Once", "▁a", "▁time", "on", "ce", "▁dog", "s", "t", "i", "m", "e", "a", "o", "n", "c", "1", "2", ",", "d", "▁r", "un"]
    t = Tokenizer(models.Unigram(pieces + [(word, -3.0 - at / 10) for at, word in enumerate(words)], unk_id=0, byte_fallback=byte_fallback))
    t.normalizer, t.pre_tokenizer, t.decoder = normalizer, pre, decoder
    if post:
        t.post_processor = post
    t.add_special_tokens(SPECIAL)
    return t


def wordpiece():
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer, t.decoder = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    t.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, show_progress=False, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return t


def llama_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def metaspace(scheme="first", split=False):
    return pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=split)


llama1 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
deepseek = pre_tokenizers.Sequence([isolated(r"\p{N}{1,3}"), isolated("[一-龥぀-ゟ゠-ヿ]+"),
                                    isolated(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
                                    level(False)])
byte_fallback = lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="first"), decoders.Fuse()])
KINDS = {
    "gpt2": byte_level(level()),
    "smollm2": byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level()])),
    "qwen2": byte_level(pre_tokenizers.Sequence([isolated(GPT4 % ""), level(False)]), normalizers.NFC()),
    "llama3": byte_level(pre_tokenizers.Sequence([isolated(GPT4 % "{1,3}"), level(False)]), None,
                         processors.Sequence([processors.ByteLevel(trim_offsets=False), BOS]), ignore_merges=True),
    "gpt-oss": byte_level(pre_tokenizers.Sequence([isolated(O200K), level(False)])),
    "deepseek-v3": byte_level(deepseek, None, BOS),
    "falcon": byte_level(pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), level(), pre_tokenizers.Digits(False),
                                                  isolated("[0-9][0-9][0-9]")])),
    "bloom": byte_level(pre_tokenizers.Sequence([isolated(" ?[^(\\s|[.,!?…。，、।۔،])]+"), level(False)])),
    "llama1": sentencepiece_bpe(llama1, None, llama_decoder()),
    "phi3": sentencepiece_bpe(llama1, None, llama_decoder(), None),
    "mistral": sentencepiece_bpe(None, metaspace(), llama_decoder()),
    "gemma": sentencepiece_bpe(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                               decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])),
    "llm-jp": unigram(None, metaspace(), byte_fallback(), None, True),
    "t5": unigram(normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
                  pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace("always", True)]),
                  decoders.Metaspace("▁"), ends_with, False),
    "bert": wordpiece(),
}
SPECIAL_FLAGS = {"llama1": AddedToken("<|user|>", normalized=False, rstrip=True), "phi3": AddedToken("<|user|>", normalized=True, lstrip=True)}

golden = {}
for name, tokenizer in KINDS.items():
    if name in SPECIAL_FLAGS:
        tokenizer.add_tokens([SPECIAL_FLAGS[name]])
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    rows = []
    for text in TEXTS + ["a <|user|> b"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append({"text": text, "ids": ids, "with_special": tokenizer.encode(text).ids, "decoded": tokenizer.decode(ids)})
    golden[name] = {"tokenizer": json.loads(tokenizer.to_str()), "texts": rows}
(Path(__file__).parent / "tokenizers.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")
