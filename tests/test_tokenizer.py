"""Ids against those of the `tokenizers` library: recorded ones always, and live ones on new strings where it is installed.

tests/tokenizer_ids.json holds a small vocabulary and the library's ids for each kind of tokenizer. To record it again, with
`tokenizers` installed: python tests/test_tokenizer.py
"""
import json
import os
import random
import sys
from pathlib import Path

import pytest

RECORD = Path(__file__).parent / "tokenizer_ids.json"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
PIECES = ["  ", " ", "   ", "\n", "\r\n", "\n\n ", "\t", "\u00a0", "\u3000", "\x85", "\u2028", "'s", "'S", "'ll", "'ſ", "don't", "0", "7", "123", "٣", "²", "½", "Ⅷ",
          "👩‍👩‍👧", "👍🏽", "🏳️‍🌈", "\u200d", "\ufe0f", "é", "e\u0301", "A\u030a", "ﬁ", ">\u0338", "\x00", "\x04", "\x1d", "=\x04=", "!!", "the", " hello", "World", "===",
          ".\n\n", "思考", "한국어", "ab" * 40, "<think>", "</think>", "<|end|>", "<|end|>x", "<|en", "|>", "<|begin|>", "<é>", "\U000f1234", "\ufeff"]
ADDED = {"<|begin|>": True, "<|end|>": True, "<|end|>x": False, "<think>": False, "<é>": False}          # text -> special
RANGES = [(0x20, 0x7f), (0x20, 0x7f), (0, 0x20), (0x7f, 0x250), (0x300, 0x600), (0x900, 0xe00), (0x1100, 0x1200), (0x2000, 0x2c00), (0x3000, 0x3400),
          (0x4e00, 0xa000), (0xac00, 0xd7a4), (0xf900, 0xffff), (0x10000, 0x20000), (0x1f300, 0x1fb00), (0x20000, 0x32000), (0x40000, 0x110000)]


def odd_strings(n: int, seed: int) -> list[str]:
    """Runs of spaces before digits, ZWJ emoji, control characters, special-token text, any code points."""
    rng, strings = random.Random(seed), []
    for _ in range(n):
        text = ""
        for _ in range(rng.randrange(10)):
            low, high = rng.choice(RANGES)
            text += rng.choice(PIECES) if rng.random() < 0.6 else "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 5)))
        strings.append(text)
    return strings


def tokenizer_json(kind: str, tokens: list[str], merges: list[tuple]) -> dict:
    """A tokenizer.json of each kind that is in use, on one small vocabulary."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3 if kind == "llama3" else QWEN}, "behavior": "Isolated", "invert": False}
    steps = {"gpt2": [{**byte_level, "use_regex": True}], "smollm": [{"type": "Digits", "individual_digits": True}, {**byte_level, "use_regex": True}]}
    if kind == "gpt2":                               # ids in another order than merges, and a token that no merge makes
        tokens = random.Random(0).sample(tokens, len(tokens))
        merges = [m for m in merges if "".join(m) != "Ġthe"]
    if kind == "smollm":                             # bytes without a token, as in SmolLM2
        tokens = [token for token in tokens if token not in ("Ą", "ñ", "ò", "ó")]
    if kind == "llama3":                             # every way to split a token is a merge, as converted from tiktoken; and a word that none makes
        rank = {token: i for i, token in enumerate(tokens)}
        merges = [pair for token in tokens for pair in sorted(((token[:i], token[i:]) for i in range(1, len(token))), key=lambda pair: rank.get(pair[0], 0))
                  if pair[0] in rank and pair[1] in rank]
        tokens = [*tokens, "Ġqzxjk"]
    n = len(tokens)
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [n], "tokens": ["<|begin|>"]}}}
    added = [{"id": n + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": text == "<é>", "special": special}
             for i, (text, special) in enumerate(ADDED.items())]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {"type": "NFC"} if kind == "qwen" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps.get(kind, [split, byte_level])},
            "post_processor": template if kind == "llama3" else None, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
                      "byte_fallback": False, "ignore_merges": kind == "llama3", "vocab": {token: i for i, token in enumerate(tokens)},
                      "merges": [list(m) for m in merges if m[0] in tokens and m[1] in tokens and m[0] + m[1] in tokens]}}


KINDS = ("gpt2", "smollm", "qwen", "llama3")


def directory(path: Path, spec: dict, **config) -> Path:
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "bos_token": {"content": "<|begin|>"}, **config}))
    return path


def trained(kind: str, size: int) -> dict:
    """A tokenizer.json whose merges the `tokenizers` library has learned from this project's files."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library = Tokenizer.from_str(json.dumps(tokenizer_json(kind, ["a"], [])))
    corpus = [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parents[1].glob("**/*.py"))] + PIECES * 20
    library.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False))
    model = json.loads(library.to_str())["model"]
    tokens = [token for token in model["vocab"] if token not in ADDED]
    return tokenizer_json(kind, tokens, [tuple(m) for m in model["merges"]])


def library_ids(spec: dict, strings: list[str], special: bool) -> list[list[int]]:
    from tokenizers import Tokenizer
    library = Tokenizer.from_str(json.dumps(spec))
    library.encode_special_tokens = not special
    return [library.encode(text, add_special_tokens=False).ids for text in strings]


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded(record, tmp_path_factory):
    """kind -> its tokenizer, read from a directory."""
    from tokenizer import load_tokenizer
    tokens, merges = record["tokens"], [tuple(m.split(" ")) for m in record["merges"]]
    path = tmp_path_factory.mktemp("tokenizers")
    return {kind: load_tokenizer(directory(path / kind, tokenizer_json(kind, tokens, merges))) for kind in KINDS}


# ------------------------------------------------------------------------------------------------------ ids

@pytest.mark.parametrize("kind", KINDS)
def test_recorded_ids(record, recorded, kind):
    tokenizer = recorded[kind]
    for text, plain, special in zip(record["strings"], record[kind]["plain"], record[kind]["special"]):
        assert tokenizer.encode(text) == plain, repr(text)
        assert tokenizer.encode(text, special=True) == special, repr(text)


def test_recorded_strings_are_odd_enough(record, recorded):
    """The cases that are easily missed are among them: each changes some ids."""
    tokenizer = recorded["smollm"]
    assert tokenizer.encode("=\x04=") == tokenizer.encode("==") and len(tokenizer.encode("==")) == 1   # a byte without a token falls out
    assert tokenizer.encode("  7") == [*tokenizer.encode("  "), *tokenizer.encode("7")]              # digits are cut out first
    assert recorded["qwen"].encode("e\u0301") == recorded["qwen"].encode("é") != recorded["gpt2"].encode("e\u0301")      # NFC
    assert len(recorded["llama3"].encode(" qzxjk")) == 1 < len(recorded["llama3"].encode("  qzxjk")) - 1                 # ignore_merges
    for tokenizer in recorded.values():
        end = tokenizer.eos_id
        assert end not in tokenizer.encode("<|end|>") and tokenizer.encode("<|end|>", special=True) == [end]
        assert tokenizer.encode("<|end|>x") == tokenizer.encode("<|end|>x", special=True) == [end + 1]   # the longer one wins, and isn't special
        assert tokenizer.encode("\ud800")                                                                # half a surrogate pair is not UTF-8


def test_decoding(recorded):
    for kind, tokenizer in recorded.items():
        for text in ("naïve 思考 👩‍👩‍👧 don't  99\r\n", "<think> <|end|>"):
            if kind != "smollm":
                assert tokenizer.decode(tokenizer.encode(text, special=True)) == text
        assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eos_id, *tokenizer.encode("<think>")], skip_special=True) == "a<think>"
        assert tokenizer.decode([*tokenizer.encode("a"), 10 ** 6]) == "a"                           # a row of the model that is no token
        assert tokenizer.decode(tokenizer.encode("é")[:1]) in ("é", "\ufffd")


@pytest.mark.parametrize("kind", KINDS)
def test_live_ids(tmp_path, kind):
    pytest.importorskip("tokenizers")
    from tokenizer import load_tokenizer
    spec, strings = trained(kind, 1200), odd_strings(3000, 1)
    tokenizer = load_tokenizer(directory(tmp_path, spec))
    for special in (False, True):
        assert [tokenizer.encode(text, special) for text in strings] == library_ids(spec, strings, special)


@pytest.mark.skipif("SMOLLM2" not in os.environ, reason="SMOLLM2 is not set to the directory of a SmolLM2")
def test_live_ids_of_smollm2():
    pytest.importorskip("tokenizers")
    from tokenizer import load_tokenizer
    path, strings = Path(os.environ["SMOLLM2"]), odd_strings(3000, 2)
    tokenizer, spec = load_tokenizer(path), json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    for special in (False, True):
        assert [tokenizer.encode(text, special) for text in strings] == library_ids(spec, strings, special)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    model = trained("qwen", 600)["model"]
    tokens, merges = list(model["vocab"]), [tuple(m) for m in model["merges"]]
    record = {"tokens": tokens, "merges": list(map(" ".join, merges)), "strings": odd_strings(120, 0)}
    for kind in KINDS:
        spec = tokenizer_json(kind, tokens, merges)
        record[kind] = {"plain": library_ids(spec, record["strings"], False), "special": library_ids(spec, record["strings"], True)}
    lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}" for name, value in record.items()]
    RECORD.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
