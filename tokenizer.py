"""Text to ids and back with tiktoken: the built-in byte-level encoding, and one read from a Hugging Face `tokenizer.json`.

Ids are what a model is trained on; text is only shown. Nothing here tokenises sampled text again.
"""
import json
from pathlib import Path

import tiktoken

# GPT-2's pre-tokeniser, which `tokenizer.json` calls ByteLevel with use_regex
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer:
    """encode, decode, apply_chat_template, eos_id and pad_id.

    added: text -> id of tokens that are matched whole; special: those of them that plain text must not produce.
    `<think>` is added but not special, as in Qwen3: a user may write it, and decoding keeps it.
    """

    def __init__(self, ranks: dict[bytes, int], added: dict[str, int], special: set[str], eos: str, pad: str,
                 pattern: str = GPT2_PATTERN, chat_template: str | None = None):
        self.encoding = tiktoken.Encoding("rl", pat_str=pattern, mergeable_ranks=ranks, special_tokens=added)
        self.ranks, self.added, self.special, self.chat_template = ranks, added, special, chat_template
        self.eos, self.pad = eos, pad
        self.eos_id, self.pad_id = added[eos], added[pad]
        self._plain, self._special_ids = set(added) - special, {added[text] for text in special}

    @property
    def vocab_size(self) -> int:
        return self.encoding.n_vocab

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Text to ids. The text of a special token becomes that token only with special=True, and plain bytes otherwise."""
        return self.encoding.encode(text, allowed_special=set(self.added) if special else self._plain, disallowed_special=())

    def decode(self, ids: list[int], skip_special: bool = False) -> str:
        """Ids to text; bytes that are not UTF-8 become U+FFFD. skip_special leaves out special tokens such as the stop token."""
        return self.encoding.decode([i for i in ids if i not in self._special_ids] if skip_special else ids)

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """Render messages ({"role", "content"}) with the model's own jinja2 template, in a sandbox. ValueError if it has none."""
        if self.chat_template is None:
            raise ValueError("this model has no chat template, so it takes text, not messages")
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.chat_template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, eos_token=self.eos, pad_token=self.pad, bos_token="")


def builtin_tokenizer() -> Tokenizer:
    """256 bytes (id = byte), a stop and a padding token, and one token each for <think> and </think>. Downloads nothing."""
    added = {"<|endoftext|>": 256, "<|pad|>": 257, "<think>": 258, "</think>": 259}
    return Tokenizer({bytes([b]): b for b in range(256)}, added, {"<|endoftext|>", "<|pad|>"}, "<|endoftext|>", "<|pad|>")


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes: `tokenizer.json` spells tokens with them ("Ġthe" is " the")."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which `transformers` reads too."""
    alphabet = byte_alphabet()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": text in tokenizer.special} for text, i in tokenizer.added.items()],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {"".join(alphabet[b] for b in token): i for token, i in tokenizer.ranks.items()},
                  "merges": []}}, indent=1, ensure_ascii=False), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.eos, "pad_token": tokenizer.pad,
        "clean_up_tokenization_spaces": False}, indent=1), encoding="utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a byte-level tokenizer.json without merges, the kind that `save_tokenizer` writes. ValueError for any other."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found, expected a Hugging Face tokenizer")
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
        config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    model, byte_of = spec.get("model", {}), {c: b for b, c in byte_alphabet().items()}
    if model.get("type") != "BPE" or model.get("merges") or any(len(token) > 1 for token in model["vocab"]):
        raise ValueError(f"{file}: model has type {model.get('type')!r} with {len(model.get('merges', []))} merges, "
                         "expected byte-level BPE without merges")
    return Tokenizer({bytes([byte_of[token]]): i for token, i in model["vocab"].items()},
                     {t["content"]: t["id"] for t in spec["added_tokens"]},
                     {t["content"] for t in spec["added_tokens"] if t["special"]},
                     config["eos_token"], config["pad_token"], chat_template=config.get("chat_template"))
