#!/usr/bin/env python3
"""Makes gguf/sentencepiece.gguf, a small SentencePiece vocabulary without weights, and gguf/sentencepiece.json, what the SentencePiece
library makes of some sentences with it.

    pip install numpy==2.4.6 gguf==0.19.0 sentencepiece==0.2.3
    python tests/golden/make_gguf_sentencepiece.py

The model is trained on the lines below with Llama's settings: BPE, byte fallback, single digits, no normalization.
"""
import io
import json
from importlib.metadata import version
from pathlib import Path

import sentencepiece
from gguf import GGUFWriter, TokenType

EXPECTED_VERSIONS = {"numpy": "2.4.6", "gguf": "0.19.0", "sentencepiece": "0.2.3"}
LINES = """
The lamp in the study was dim, and the lamp in the hall was bright.
She turned the heating down to 19 degrees before she went to bed.
Nobody had told him that the kitchen window was still open.
When the rain began, the children ran back to the house and closed every door.
A small model learns from a large one by watching what it finds likely.
Every weight that is taken away must be missed by nobody.
They measured the same thing twice, and the second time it was another thing.
If the numbers do not agree, one of the two programs is wrong, or both are.
The quick answer is often the wrong answer; the slow answer is often late.
He wrote the date, 3 May 2024, at the top of the page and nothing below it.
Some words are long: transformation, understanding, characteristically.
The naïve café owner paid 42 euros for the jalapeños and thirty for the rest.
Bananas, banana bread, and bandanas are banned in the canteen.
"""
SENTENCES = [
    "The lamp in the hall was dim.",
    "the thing they thought through thoroughly",
    "  two spaces before,  two between, two after  ",
    " ",
    "2024-05-03 19:42",
    "naïve café",
    "日本語 and emoji 🙂",
    "a\ttab and\na line",
    "bananananas",
    "aaaaaaaaaaaaaaa",
    "understandingcharacteristically",
    "UPPER CASE WORDS",
    "an open bracket < and a closed one >",
    "What is not known becomes bytes: §¶Ωж",
]

for package, expected in EXPECTED_VERSIONS.items():
    if version(package) != expected:
        print(f"note: {package} is {version(package)}, the committed files were made with {expected}")

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES.strip().split("\n")), model_writer=model, model_type="bpe", vocab_size=420, byte_fallback=True,
    split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
    character_coverage=1.0, num_threads=1, minloglevel=2)
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

tokens, scores, types = [], [], []
for id in range(processor.vocab_size()):
    tokens.append(processor.id_to_piece(id))
    scores.append(processor.get_score(id))
    types.append(
        TokenType.UNKNOWN if processor.is_unknown(id) else TokenType.CONTROL if processor.is_control(id)
        else TokenType.BYTE if processor.is_byte(id) else TokenType.NORMAL)

folder = Path(__file__).parent / "gguf"
writer = GGUFWriter(folder / "sentencepiece.gguf", "llama")
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores(scores)
writer.add_token_types(types)
writer.add_bos_token_id(processor.bos_id())
writer.add_eos_token_id(processor.eos_id())
writer.add_unk_token_id(processor.unk_id())
writer.add_add_space_prefix(True)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

sentences = [{"text": text, "ids": processor.encode(text)} for text in SENTENCES]
lines = ",\n".join("    " + json.dumps(sentence, ensure_ascii=False) for sentence in sentences)
(folder / "sentencepiece.json").write_text('{\n  "made_with": "sentencepiece %s",\n  "sentences": [\n%s\n  ]\n}\n' % (version("sentencepiece"), lines))
print(f"{folder}: {len(tokens)} tokens, {len(sentences)} sentences")
