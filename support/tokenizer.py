"""Text to ids and back with tiktoken: the built-in byte-level encoding, and one read from a Hugging Face `tokenizer.json`.

A tokenizer is what its files say: byte-level BPE with the pre-tokenizer of GPT-2, SmolLM, Qwen or Llama 3. Its ids are those of the
`tokenizers` library on every string; what can't be reproduced exactly is refused by file and field. Ids are what a model is trained
on; text is only shown. Nothing here tokenises sampled text again.
"""
import json
import re
import unicodedata
from datetime import datetime
from functools import cached_property
from pathlib import Path

import regex
import tiktoken
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

# how GPT-2 cuts text into words, within which bytes are merged; `tokenizer.json` calls it ByteLevel with use_regex
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# the same where digits are cut out first, one by one: to the spaces before it, a digit then is the end of the text
DIGITS_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


class Tokenizer:
    """encode, decode, apply_chat_template; eos_id, stop_ids, pad_id, prefix.

    eos_id ends an answer that we write; stop_ids, eos_id among them, are all that end an answer that is sampled. prefix: the ids (a
    BOS, or none) that the model's own tokenizer puts before a plain text. Added tokens are matched whole; those that are special
    only with special=True. `<think>` is added but not special, as in Qwen3: a user may write it, and decoding keeps it.

    files: name -> content, of a Hugging Face directory; kept for `save_tokenizer`. ValueError: file and field, found and expected.
    """

    def __init__(self, files: dict[str, bytes], path: Path):
        self.files, file = files, path / "tokenizer.json"
        objects = {name: parse_object(data, path / name) for name, data in files.items() if name.endswith(".json")}
        spec, config = objects["tokenizer.json"], objects["tokenizer_config.json"]
        if spec.get("normalizer") not in (None, {"type": "NFC"}):
            raise ValueError(f"{file}: normalizer is {json.dumps(spec['normalizer'])[:200]}, expected null or NFC")
        self._normalize = (lambda text: unicodedata.normalize("NFC", text)) if spec.get("normalizer") else str
        self.added, next_id = {}, len(spec["model"]["vocab"])
        patterns = {(special, normalized): [] for special in (False, True) for normalized in (False, True)}
        for token in spec["added_tokens"]:
            text, expected = token["content"], spec["model"]["vocab"].get(token["content"], next_id)
            if token["id"] != expected:                                # the id that `tokenizers` gives it, whatever the file says
                raise ValueError(f"{file}: added token {text!r} has id {token['id']}, expected {expected} after this vocabulary")
            if token["lstrip"] or token["rstrip"] or token["single_word"]:
                raise ValueError(f"{file}: added token {text!r} has lstrip, rstrip or single_word, expected none of them")
            text, next_id = self._normalize(text) if token["normalized"] else text, max(next_id, expected + 1)
            self.added[text] = expected
            for special in {True, token["special"]}:
                patterns[special, token["normalized"]].append(text)
        self._added_patterns = {key: longest_first(texts) for key, texts in patterns.items()}
        self._special_ids = {token["id"] for token in spec["added_tokens"] if token["special"]}
        special = [text for text, i in self.added.items() if i in self._special_ids]
        self._first_characters = sorted({text[0] for text in special})
        self._token_start = re.compile(f"(?={longest_first(special).pattern}).", re.DOTALL)
        self._bytes, ranks, self._ids = merge_ranks(spec["model"], self.added, file)
        self._missing = bytes(b for b in range(256) if self._ids[ranks[bytes([b])]] is None)
        self._pattern = word_pattern(spec["pre_tokenizer"], file)
        self.encoding = tiktoken.Encoding(path.name, pat_str=self._pattern, mergeable_ranks=ranks, special_tokens={})

        texts = {name: token["content"] if isinstance(token, dict) else token
                 for name, token in {**objects.get("special_tokens_map.json", {}), **config}.items() if name.endswith("_token")}
        self._special_texts = {name: text for name, text in texts.items() if isinstance(text, str)}
        eos, bos, pad = (self._special_texts.get(name) for name in ("eos_token", "bos_token", "pad_token"))
        if eos not in self.added:
            raise ValueError(f"{path / 'tokenizer_config.json'}: eos_token is {eos!r}, expected the text of an added token")
        self.eos_id, self.bos_id, self.pad_id = self.added[eos], self.added.get(bos), self.added.get(pad, self.added[eos])
        self.stop_ids = {self.eos_id}
        for name in ("config.json", "generation_config.json"):
            listed = objects.get(name, {}).get("eos_token_id")
            listed = [] if listed is None else listed if isinstance(listed, list) else [listed]
            if not all(type(i) is int for i in listed):
                raise ValueError(f"{path / name}: eos_token_id is {listed}, expected an integer or a list of integers")
            self.stop_ids.update(listed)
        self.prefix = template_prefix(spec.get("post_processor"), file)
        if config.get("add_bos_token") is not None:                    # `transformers` then overrules tokenizer.json
            self.prefix = [self.bos_id] if config["add_bos_token"] and bos in self.added else []
        template = config.get("chat_template")
        if isinstance(template, list):                                 # several by name
            template = {t["name"]: t["template"] for t in template}.get("default")
        self.chat_template = files["chat_template.jinja"].decode() if "chat_template.jinja" in files else template

    @property
    def vocab_size(self) -> int:
        return max(self._bytes) + 1

    def encode(self, text: str, special: bool = False, hidden: dict | None = None) -> list[int]:
        """Text to ids. A special token's text becomes that token only with special=True.

        hidden: what `hide_special_text` gave with the messages that `text` was rendered from."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")       # JSON may hold half a surrogate pair
        raw, normalized = self._added_patterns[special, False], self._added_patterns[special, True]
        ids = []
        for i, piece in enumerate(raw.split(text)):                    # text, token, text, ..., text
            for j, part in enumerate([piece] if i % 2 else normalized.split(self._normalize(piece))):
                shown = part.translate(hidden) if hidden else part
                if i % 2 or j % 2:
                    ids.append(self.added[part])
                elif shown != part:
                    ids += self.encode(shown)
                else:
                    ids += self._encode_plain(part)
        return ids

    def hide_special_text(self, messages: list[dict]) -> tuple[list[dict], dict[int, str]]:
        """Messages to render in place of these, and the `hidden` with which to encode the result.

        What people wrote is data: `<|endoftext|>` in a user's turn ends nothing. Of each special
        token in a message, the first character is replaced by one that occurs nowhere. `encode`
        finds the template's own tokens, puts the characters back, and encodes what lies between two
        tokens as one plain text. Messages without such text stay as they are.

        A template that looks for a special token in a message doesn't find it. Half a token in a
        message, of which the template writes the other half, still becomes one."""
        written = json.dumps(messages, ensure_ascii=False) + (self.chat_template or "")
        # characters for private use
        unused = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in written)
        stand_ins = {first: next(unused) for first in self._first_characters}

        def hide(value):
            if isinstance(value, str):
                # NFC may make a special token's text of what wasn't one
                normal = self._normalize(value)
                value = normal if self._token_start.search(normal) else value
                return self._token_start.sub(lambda match: stand_ins[match.group()], value)
            if isinstance(value, list):
                return [hide(item) for item in value]
            if isinstance(value, dict):
                return {hide(name): hide(item) for name, item in value.items()}
            return value
        return hide(messages), {ord(stand_in): first for first, stand_in in stand_ins.items()}

    def _encode_plain(self, text: str) -> list[int]:
        # tiktoken's engine panics at a run of a million blanks. The search begins only where a run
        # does: from each of its blanks, it would take quadratic time
        if not re.search(r"(?<!\s)\s{100000}", text):
            ids = [self._ids[rank] for rank in self.encoding.encode_ordinary(text)]
            if None not in ids:
                return ids
        # bytes that the vocabulary lacks fall out of their word before its merges, so that their neighbours may merge
        words = (match.group().encode().translate(None, self._missing) for match in regex.finditer(self._pattern, text))
        return [self._ids[rank] for word in words if word for rank in self.encoding._encode_single_piece(word)]

    def decode(self, ids: list[int], skip_special: bool = False) -> str:
        """Ids to text; bytes that are not UTF-8 become U+FFFD. skip_special leaves out special tokens such as the stop token.

        A model may have more rows than its tokenizer has tokens: their ids are no text."""
        skipped = self._special_ids if skip_special else ()
        return b"".join(self._bytes.get(i, b"") for i in ids if i not in skipped).decode(errors="replace")

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """Render messages ({"role", "content"}) with the model's own jinja2 template, in a sandbox. ValueError if it has none or fails."""
        if self.chat_template is None:
            raise ValueError("this model has no chat template, so it takes text, not messages")
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None,
                                         **self._special_texts)
        except Exception as error:                                     # a template is a program: it may raise anything
            raise ValueError(f"the chat template failed: {type(error).__name__}: {error}".replace("\n", " ")) from error

    @cached_property
    def _template(self):
        """The compiled template, with what `transformers` offers to it."""
        def raise_exception(message):
            raise TemplateError(message)

        def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):      # jinja2's own escapes HTML
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
        environment.filters["tojson"] = tojson
        environment.globals.update(raise_exception=raise_exception, strftime_now=lambda format: datetime.now().strftime(format))
        return environment.from_string(self.chat_template)


class Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: marks what the assistant wrote, and changes no text."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def builtin_tokenizer() -> Tokenizer:
    """256 bytes (id = byte), a stop and a padding token, and one token each for <think> and </think>. Downloads nothing."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": i < 258}
             for i, text in enumerate(("<|endoftext|>", "<|pad|>", "<think>", "</think>"), 256)]
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": {c: b for b, c in byte_alphabet().items()}, "merges": []}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>",
              "clean_up_tokenization_spaces": False}
    return Tokenizer({"tokenizer.json": json.dumps(spec, indent=1, ensure_ascii=False).encode(),
                      "tokenizer_config.json": json.dumps(config, indent=1).encode()}, Path("built-in"))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read tokenizer.json and the small files beside it. Errors: FileNotFoundError or ValueError naming file and field."""
    files = {name: (path / name).read_bytes() for name in (*FILES, "config.json") if (path / name).is_file()}
    for name in FILES[:2]:
        if name not in files:
            raise FileNotFoundError(f"{path / name}: not found, expected a Hugging Face tokenizer")
    try:
        return Tokenizer(files, path)
    except (KeyError, TypeError, AttributeError) as error:             # something is not there, or of another type
        raise ValueError(f"{path / 'tokenizer.json'}: not the tokenizer.json of a byte-level BPE: {error!r}") from error


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write the tokenizer's files as they were read, and remove another tokenizer's."""
    for name in FILES:
        if name in tokenizer.files:
            (path / name).write_bytes(tokenizer.files[name])
        else:
            (path / name).unlink(missing_ok=True)


def same_tokenizer(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Whether every id means the same to both: the same bytes, and the same added tokens.

    What else their files say, such as a chat template, doesn't matter."""
    return tokenizer._bytes == other._bytes and tokenizer.added == other.added


def parse_object(data: bytes, file: Path) -> dict:
    """JSON that holds an object, or a ValueError that names the file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: found {type(value).__name__}, expected a JSON object")
    return value


def longest_first(texts: list[str]) -> re.Pattern:
    """Matches any of the texts; of two that begin at one place, the longer."""
    return re.compile("(%s)" % ("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"))


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes: `tokenizer.json` spells tokens with them ("Ġthe" is " the")."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)}


def word_pattern(pre_tokenizer: dict, file: Path) -> str:
    """The regular expression that finds a text's words."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    match [{"use_regex": True, **step} for step in steps]:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return GPT2_PATTERN
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return DIGITS_PATTERN
        case [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
              {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}]:
            return rf"{pattern}|(?:(?!{pattern})[\s\S])+"              # what lies between two matches is a word too
    raise ValueError(f"{file}: pre_tokenizer is {json.dumps(pre_tokenizer)[:200]}, expected that of GPT-2, SmolLM, Qwen or Llama 3")


def merge_ranks(model: dict, added: dict[str, int], file: Path) -> tuple[dict[int, bytes], dict[bytes, int], list[int | None]]:
    """A byte-level BPE for tiktoken: id -> bytes, bytes -> rank, and the id of each rank (None for a byte without a token).

    `tokenizer.json` lists the pairs that may merge, the first in the list first. tiktoken merges any two neighbours whose bytes
    together have a rank, the lowest first, and takes a word that has one as it is. The two agree if a token's rank is the place
    of the merge that completes it when its own bytes are merged alone, and tokens that merges don't make have none: as long as no
    merge has crossed the ends of a stretch of bytes, what happened inside it is what happens to it alone.
    """
    vocab, byte_of = model["vocab"], {c: b for b, c in byte_alphabet().items()}
    for field, expected in {"type": "BPE", "dropout": None, "byte_fallback": False, "fuse_unk": False,
                            "continuing_subword_prefix": "", "end_of_word_suffix": ""}.items():
        if model.get(field) not in (None, expected):
            raise ValueError(f"{file}: model.{field} is {model[field]!r}, expected {expected!r}")
    place = {}
    for n, merge in enumerate(model["merges"]):
        pair = tuple(merge.split(" ") if isinstance(merge, str) else merge)
        if len(pair) != 2 or pair[0] not in vocab or pair[1] not in vocab or pair[0] + pair[1] not in vocab:
            raise ValueError(f"{file}: merge {n} is {merge!r}, expected two tokens of the vocabulary that make a third")
        place[pair] = n

    bytes_of, last_merge, never = {i: text.encode() for text, i in added.items()}, {}, len(model["merges"])
    for token, i in vocab.items():
        if not all(c in byte_of for c in token):
            if token in added:
                continue
            raise ValueError(f"{file}: token {token!r} is not spelled in bytes, expected a byte-level vocabulary")
        bytes_of.setdefault(i, bytes(byte_of[c] for c in token))
        parts, last = list(token), -1
        while len(parts) > 1:
            n, k = min((place.get(pair, never), k) for k, pair in enumerate(zip(parts, parts[1:])))
            if n == never:
                break
            parts[k:k + 2], last = [parts[k] + parts[k + 1]], n
        if len(parts) == 1:
            last_merge[token] = last
        elif model.get("ignore_merges"):                               # then such a token is made of a word of its own, by no merge
            if len(parts) == 2:
                raise ValueError(f"{file}: token {token!r} has no merge but ignore_merges is set, and tiktoken would merge {parts}")
            last_merge[token] = never
    order = [*sorted(last_merge, key=last_merge.get), *(byte_of.keys() - vocab.keys())]
    ids = [vocab.get(token, vocab.get(model.get("unk_token"))) for token in order]
    return bytes_of, {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(order)}, ids


def template_prefix(post_processor: dict | None, file: Path) -> list[int]:
    """The ids that the tokenizer puts before a text: a BOS (Llama 3), or nothing."""
    steps = [] if post_processor is None else post_processor["processors"] if post_processor["type"] == "Sequence" else [post_processor]
    prefix = []
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:                                # moves offsets, which nobody here asks for
                pass
            case {"type": "TemplateProcessing", "single": [*before, {"Sequence": {"id": "A"}}]}:
                prefix += [i for item in before for i in step["special_tokens"][item["SpecialToken"]["id"]]["ids"]]
            case _:
                raise ValueError(f"{file}: post_processor has {json.dumps(step)[:200]}, expected one that only puts tokens before a text")
    return prefix
