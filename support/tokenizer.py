"""Text to ids and back with tiktoken.

There is the built-in byte-level encoding, and one that is read from a Hugging Face
`tokenizer.json`.

A tokenizer is what its files say: byte-level BPE with the pre-tokenizer of GPT-2, SmolLM, Qwen or
Llama 3. Its ids are those of the `tokenizers` library on every string; what can't be reproduced
exactly is refused by file and field. Ids are what a model is trained on; text is only shown.
Nothing here tokenises sampled text again.
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

# How GPT-2 cuts text into words, within which bytes are merged; `tokenizer.json` calls it ByteLevel
# with use_regex.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same where digits are cut out first, one by one: to the spaces before it, a digit then is the
# end of the text.
DIGITS_PATTERN = (r"\p{N}|"
                  r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "chat_template.jinja", "generation_config.json")


class Tokenizer:
    """encode, decode, apply_chat_template; eos_id, stop_ids, pad_id, prefix.

    eos_id ends an answer that we write; stop_ids, eos_id among them, are all that end an answer
    that is sampled. prefix: the ids (a BOS, or none) that the model's own tokenizer puts before a
    plain text. Added tokens are matched whole; those that are special only with special=True.
    `<think>` is added but not special, as in Qwen3: a user may write it, and decoding keeps it.

    files: name -> content, of a Hugging Face directory; kept for `save_tokenizer`. ValueError: file
    and field, found and expected.
    """

    def __init__(self, files: dict[str, bytes], path: Path):
        self.files = files
        objects = {}
        for name, data in files.items():
            if name.endswith(".json"):
                objects[name] = parse_object(data, path / name)
        spec, config = objects["tokenizer.json"], objects["tokenizer_config.json"]

        file = path / "tokenizer.json"
        self._normalize = _choose_normalizer(spec, file)
        self._read_added_tokens(spec, file)
        self._read_model(spec, file, path.name)
        special_tokens = {**objects.get("special_tokens_map.json", {}), **config}
        self._read_special_texts(special_tokens, path / "tokenizer_config.json")
        self.stop_ids = {self.eos_id, *_read_stop_ids(objects, path)}
        self.prefix = template_prefix(spec.get("post_processor"), file)
        # As in `transformers`, this field overrules tokenizer.json.
        if config.get("add_bos_token") is not None:
            adds_bos = config["add_bos_token"] and self.bos_id is not None
            self.prefix = [self.bos_id] if adds_bos else []
        self.chat_template = _read_chat_template(config, files, path)

    def _read_added_tokens(self, spec: dict, file: Path) -> None:
        """Set `added`, text -> id, and what finds the added tokens in a text."""
        vocab = spec["model"]["vocab"]
        next_id = len(vocab)
        self.added = {}
        # (whether special tokens are looked for, whether the text is normalized before) -> texts
        texts = {(False, False): [], (False, True): [], (True, False): [], (True, True): []}
        for token in spec["added_tokens"]:
            text = token["content"]
            # The id that `tokenizers` gives to this token, whatever the file says.
            expected = vocab.get(text, next_id)
            if token["id"] != expected:
                raise ValueError(f"{file}: added token {text!r} has id {token['id']}, "
                                 f"expected {expected} after this vocabulary")
            if token["lstrip"] or token["rstrip"] or token["single_word"]:
                raise ValueError(f"{file}: added token {text!r} has lstrip, rstrip or single_word, "
                                 "expected none of them")
            if token["normalized"]:
                text = self._normalize(text)
            next_id = max(next_id, expected + 1)
            self.added[text] = expected
            # A token that isn't special is found always, a special one only where it is asked for.
            for special in {True, token["special"]}:
                texts[special, token["normalized"]].append(text)
        self._added_patterns = {kind: longest_first(found) for kind, found in texts.items()}
        self._special_ids = {token["id"] for token in spec["added_tokens"] if token["special"]}
        special_texts = [text for text, i in self.added.items() if i in self._special_ids]
        self._first_characters = sorted({text[0] for text in special_texts})
        any_special = longest_first(special_texts).pattern
        self._token_start = re.compile(f"(?={any_special}).", re.DOTALL)

    def _read_model(self, spec: dict, file: Path, name: str) -> None:
        """Set `encoding`, tiktoken's, and what else turns text into ids and back."""
        # The bytes of each id, and the id of each of tiktoken's ranks.
        self._bytes, ranks, self._ids = merge_ranks(spec["model"], self.added, file)
        # The bytes that the vocabulary has no token for.
        self._missing = bytes(b for b in range(256) if self._ids[ranks[bytes([b])]] is None)
        self._pattern = word_pattern(spec["pre_tokenizer"], file)
        self.encoding = tiktoken.Encoding(name, pat_str=self._pattern, mergeable_ranks=ranks,
                                          special_tokens={})

    def _read_special_texts(self, fields: dict, config_file: Path) -> None:
        """Set the texts of eos_token and its like, and `eos_id`, `bos_id` and `pad_id`."""
        self._special_texts = {}
        for name, token in fields.items():
            if name.endswith("_token"):
                text = token["content"] if isinstance(token, dict) else token
                if isinstance(text, str):
                    self._special_texts[name] = text
        eos = self._special_texts.get("eos_token")
        bos = self._special_texts.get("bos_token")
        pad = self._special_texts.get("pad_token")
        if eos not in self.added:
            raise ValueError(f"{config_file}: eos_token is {eos!r}, "
                             "expected the text of an added token")
        self.eos_id = self.added[eos]
        self.bos_id = self.added.get(bos)
        self.pad_id = self.added.get(pad, self.eos_id)

    @property
    def vocab_size(self) -> int:
        return max(self._bytes) + 1

    def encode(self, text: str, special: bool = False, hidden: dict | None = None) -> list[int]:
        """Text to ids. A special token's text becomes that token only with special=True.

        hidden: what `hide_special_text` gave with the messages that `text` was rendered from."""
        # JSON may hold half of a surrogate pair.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raw = self._added_patterns[special, False]
        normalized = self._added_patterns[special, True]
        ids = []
        # `split` gives text, token, text, ..., text: what has an odd place is a token.
        for i, piece in enumerate(raw.split(text)):
            if i % 2:
                ids.append(self.added[piece])
                continue
            for j, part in enumerate(normalized.split(self._normalize(piece))):
                if j % 2:
                    ids.append(self.added[part])
                    continue
                shown = part.translate(hidden) if hidden else part
                if shown != part:
                    # With its characters put back, it may have added tokens that aren't special.
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
        # Unicode keeps these characters for private use.
        unused = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in written)
        stand_ins = {first: next(unused) for first in self._first_characters}

        def hide(value):
            if isinstance(value, str):
                # NFC may make a special token's text of what wasn't one.
                normal = self._normalize(value)
                if self._token_start.search(normal):
                    value = normal
                return self._token_start.sub(lambda match: stand_ins[match.group()], value)
            if isinstance(value, list):
                return [hide(item) for item in value]
            if isinstance(value, dict):
                return {hide(name): hide(item) for name, item in value.items()}
            return value

        hidden = {ord(stand_in): first for first, stand_in in stand_ins.items()}
        return hide(messages), hidden

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of what stands between two added tokens."""
        # tiktoken's engine panics at a run of a million blanks. The search begins only where a run
        # does: from each of its blanks, it would take quadratic time.
        if not re.search(r"(?<!\s)\s{100000}", text):
            ids = [self._ids[rank] for rank in self.encoding.encode_ordinary(text)]
            if None not in ids:
                return ids
        # Bytes that the vocabulary lacks fall out of their word before its merges, so that their
        # neighbours may merge.
        ids = []
        for match in regex.finditer(self._pattern, text):
            word = match.group().encode().translate(None, self._missing)
            if word:
                ids += [self._ids[rank] for rank in self.encoding._encode_single_piece(word)]
        return ids

    def decode(self, ids: list[int], skip_special: bool = False) -> str:
        """Ids to text; bytes that are not UTF-8 become U+FFFD.

        skip_special leaves out special tokens such as the stop token. A model may have more rows
        than its tokenizer has tokens: their ids are no text."""
        skipped = self._special_ids if skip_special else ()
        pieces = [self._bytes.get(i, b"") for i in ids if i not in skipped]
        return b"".join(pieces).decode(errors="replace")

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """Render messages ({"role", "content"}) with the model's own jinja2 template, in a sandbox.

        ValueError if it has none or fails."""
        if self.chat_template is None:
            raise ValueError("this model has no chat template, so it takes text, not messages")
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None,
                documents=None, **self._special_texts)
        # A template is a program: it may raise anything.
        except Exception as error:
            message = f"the chat template failed: {type(error).__name__}: {error}"
            raise ValueError(message.replace("\n", " ")) from error

    @cached_property
    def _template(self):
        """The compiled template, with what `transformers` offers to it."""
        def raise_exception(message):
            raise TemplateError(message)

        def strftime_now(format):
            return datetime.now().strftime(format)

        # The filter of this name that jinja2 has writes HTML.
        def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent,
                              separators=separators, sort_keys=sort_keys)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
        environment.filters["tojson"] = tojson
        environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
        return environment.from_string(self.chat_template)


class Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}` in a chat template.

    It marks what the assistant wrote, and changes no text."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def builtin_tokenizer() -> Tokenizer:
    """The built-in tokenizer. Downloads nothing.

    It has 256 bytes (id = byte), a stop and a padding token, and one token each for <think> and
    </think>."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    vocab = {character: byte for byte, character in byte_alphabet().items()}
    added_tokens = [_describe_token(256, "<|endoftext|>", special=True),
                    _describe_token(257, "<|pad|>", special=True),
                    _describe_token(258, "<think>", special=False),
                    _describe_token(259, "</think>", special=False)]
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens,
            "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
            "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>",
              "pad_token": "<|pad|>", "clean_up_tokenization_spaces": False}
    files = {"tokenizer.json": json.dumps(spec, indent=1, ensure_ascii=False).encode(),
             "tokenizer_config.json": json.dumps(config, indent=1).encode()}
    return Tokenizer(files, Path("built-in"))


def _describe_token(i: int, text: str, special: bool) -> dict:
    """An added token as `tokenizer.json` has it."""
    return {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special}


def load_tokenizer(path: Path) -> Tokenizer:
    """Read tokenizer.json and the small files beside it.

    Errors: FileNotFoundError or ValueError naming file and field."""
    files = {}
    for name in (*FILES, "config.json"):
        if (path / name).is_file():
            files[name] = (path / name).read_bytes()
    for name in FILES[:2]:
        if name not in files:
            raise FileNotFoundError(f"{path / name}: not found, expected a Hugging Face tokenizer")
    try:
        return Tokenizer(files, path)
    # Something is not there, or of another type.
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / 'tokenizer.json'}: not the tokenizer.json of a byte-level BPE: "
                         f"{error!r}") from error


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
    ordered = sorted(texts, key=len, reverse=True)
    # Without any text, this matches nowhere.
    alternatives = "|".join(map(re.escape, ordered)) or "(?!)"
    return re.compile(f"({alternatives})")


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes.

    `tokenizer.json` spells tokens with them ("Ġthe" is " the")."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
                 *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)}


def word_pattern(pre_tokenizer: dict, file: Path) -> str:
    """The regular expression that finds a text's words."""
    is_sequence = pre_tokenizer["type"] == "Sequence"
    steps = pre_tokenizer["pretokenizers"] if is_sequence else [pre_tokenizer]
    match [{"use_regex": True, **step} for step in steps]:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return GPT2_PATTERN
        case [{"type": "Digits", "individual_digits": True},
              {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return DIGITS_PATTERN
        case [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
               "invert": False},
              {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}]:
            # What lies between two matches is a word too.
            return rf"{pattern}|(?:(?!{pattern})[\s\S])+"
    raise ValueError(f"{file}: pre_tokenizer is {json.dumps(pre_tokenizer)[:200]}, "
                     "expected that of GPT-2, SmolLM, Qwen or Llama 3")


def merge_ranks(
        model: dict, added: dict[str, int],
        file: Path) -> tuple[dict[int, bytes], dict[bytes, int], list[int | None]]:
    """A byte-level BPE for tiktoken.

    -> id -> bytes, bytes -> rank, and the id of each rank (None for a byte without a token).

    `tokenizer.json` lists the pairs that may merge, the first in the list first. tiktoken merges
    any two neighbours whose bytes together have a rank, the lowest first, and takes a word that has
    one as it is. The two agree if a token's rank is the place of the merge that completes it when
    its own bytes are merged alone, and tokens that merges don't make have none: as long as no merge
    has crossed the ends of a stretch of bytes, what happened inside it is what happens to it alone.
    """
    vocab = model["vocab"]
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    _check_model(model, file)
    places = _place_merges(model["merges"], vocab, file)
    never = len(model["merges"])

    bytes_of = {i: text.encode() for text, i in added.items()}
    # The place of the merge that completes a token; -1 for a single byte, which needs none.
    last_merge = {}
    for token, i in vocab.items():
        if not all(character in byte_of for character in token):
            if token in added:
                continue
            raise ValueError(f"{file}: token {token!r} is not spelled in bytes, "
                             "expected a byte-level vocabulary")
        bytes_of.setdefault(i, _spell_in_bytes(token, byte_of))
        parts, last = _merge_alone(token, places, never)
        if len(parts) == 1:
            last_merge[token] = last
        elif model.get("ignore_merges"):
            # Such a token is made of a word of its own, and by no merge.
            if len(parts) == 2:
                raise ValueError(f"{file}: token {token!r} has no merge but ignore_merges is set, "
                                 f"and tiktoken would merge {parts}")
            last_merge[token] = never
    # Each token at its rank. tiktoken needs all bytes, so those without a token come last.
    order = [*sorted(last_merge, key=last_merge.get), *(byte_of.keys() - vocab.keys())]
    ranks = {_spell_in_bytes(token, byte_of): rank for rank, token in enumerate(order)}
    unknown = vocab.get(model.get("unk_token"))
    ids = [vocab.get(token, unknown) for token in order]
    return bytes_of, ranks, ids


def _check_model(model: dict, file: Path) -> None:
    """ValueError if a setting of the BPE is one that tiktoken hasn't."""
    supported = {"type": "BPE", "dropout": None, "byte_fallback": False, "fuse_unk": False,
                 "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    for field, expected in supported.items():
        if model.get(field) not in (None, expected):
            raise ValueError(f"{file}: model.{field} is {model[field]!r}, expected {expected!r}")


def _place_merges(merges: list, vocab: dict[str, int], file: Path) -> dict[tuple[str, str], int]:
    """Pair of tokens that merge -> its place in the list."""
    places = {}
    for n, merge in enumerate(merges):
        pair = tuple(merge.split(" ") if isinstance(merge, str) else merge)
        if (len(pair) != 2 or pair[0] not in vocab or pair[1] not in vocab
                or pair[0] + pair[1] not in vocab):
            raise ValueError(f"{file}: merge {n} is {merge!r}, "
                             "expected two tokens of the vocabulary that make a third")
        places[pair] = n
    return places


def _merge_alone(token: str, places: dict[tuple[str, str], int],
                 never: int) -> tuple[list[str], int]:
    """What a token's own bytes are merged to, and the place of the last merge, -1 if there is none.

    never: a place after all merges."""
    parts = list(token)
    last = -1
    while len(parts) > 1:
        pairs = zip(parts, parts[1:])
        n, k = min((places.get(pair, never), k) for k, pair in enumerate(pairs))
        if n == never:
            break
        parts[k:k + 2] = [parts[k] + parts[k + 1]]
        last = n
    return parts, last


def _spell_in_bytes(token: str, byte_of: dict[str, int]) -> bytes:
    """The bytes for which a token's characters stand."""
    return bytes(byte_of[character] for character in token)


def template_prefix(post_processor: dict | None, file: Path) -> list[int]:
    """The ids that the tokenizer puts before a text: a BOS (Llama 3), or nothing."""
    if post_processor is None:
        steps = []
    elif post_processor["type"] == "Sequence":
        steps = post_processor["processors"]
    else:
        steps = [post_processor]
    prefix = []
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                # It moves offsets, which nobody here asks for.
                pass
            case {"type": "TemplateProcessing", "single": [*before, {"Sequence": {"id": "A"}}]}:
                for item in before:
                    name = item["SpecialToken"]["id"]
                    prefix += step["special_tokens"][name]["ids"]
            case _:
                raise ValueError(f"{file}: post_processor has {json.dumps(step)[:200]}, "
                                 "expected one that only puts tokens before a text")
    return prefix


def _choose_normalizer(spec: dict, file: Path):
    """The function with which a tokenizer.json normalizes text. ValueError if it isn't NFC."""
    normalizer = spec.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        raise ValueError(f"{file}: normalizer is {json.dumps(normalizer)[:200]}, "
                         "expected null or NFC")
    return _compose if normalizer else str


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _read_stop_ids(objects: dict[str, dict], path: Path) -> list[int]:
    """The eos_token_id of the model's configs, which may be several in each."""
    stop_ids = []
    for name in ("config.json", "generation_config.json"):
        listed = objects.get(name, {}).get("eos_token_id")
        if listed is None:
            listed = []
        elif not isinstance(listed, list):
            listed = [listed]
        if not all(type(i) is int for i in listed):
            raise ValueError(f"{path / name}: eos_token_id is {listed}, "
                             "expected an integer or a list of integers")
        stop_ids += listed
    return stop_ids


def _read_chat_template(config: dict, files: dict[str, bytes], path: Path) -> str | None:
    """The template of a file of its own, else that of tokenizer_config.json, else None."""
    template = config.get("chat_template")
    if isinstance(template, list):
        # There are several, each with a name.
        by_name = {named["name"]: named["template"] for named in template}
        template = by_name.get("default")
    name = "chat_template.jinja"
    if name in files:
        try:
            template = files[name].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path / name}: byte {error.start} is not UTF-8") from None
    return template
