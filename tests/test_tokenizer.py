"""Ids against those of the `tokenizers` library: recorded ones always, and live ones on new
strings where it is installed.

tests/tokenizer_ids.json holds a small vocabulary and the library's ids for each kind of
tokenizer. To record it again, with `tokenizers` installed: python tests/test_tokenizer.py
"""
import json
import os
import random
import sys
import time
import unicodedata
from pathlib import Path

import pytest

# For the recorder below.
sys.path.insert(0, str(Path(__file__).parents[1]))
from support.data import encode_completion, encode_prompt
from support.tokenizer import builtin_tokenizer, load_tokenizer, same_tokenizer, save_tokenizer

RECORD = Path(__file__).parent / "tokenizer_ids.json"
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
PIECES = [
    "  ", " ", "   ", "\n", "\r\n", "\n\n ", "\t", "\u00a0", "\u3000", "\x85", "\u2028",
    "'s", "'S", "'ll", "'ſ", "don't", "0", "7", "123", "٣", "²", "½", "Ⅷ",
    "👩‍👩‍👧", "👍🏽", "🏳️‍🌈", "\u200d", "\ufe0f", "é", "e\u0301", "A\u030a", "ﬁ", ">\u0338",
    "\x00", "\x04", "\x1d", "-\x04-", "!!", " the", " qzxjk", " hello", "World", "===", ".\n\n",
    "思考", "한국어", "ab" * 40, "<think>", "</think>", "<|end|>", "<|end|>x", "<|en", "|>",
    "<|begin|>", "<é>", "\U000f1234", "\ufeff"]
# text -> special
ADDED = {"<|begin|>": True, "<|end|>": True, "<|end|>x": False, "<think>": False, "<é>": False}
RANGES = [
    (0x20, 0x7f), (0x20, 0x7f), (0, 0x20), (0x7f, 0x250), (0x300, 0x600), (0x900, 0xe00),
    (0x1100, 0x1200), (0x2000, 0x2c00), (0x3000, 0x3400), (0x4e00, 0xa000), (0xac00, 0xd7a4),
    (0xf900, 0xffff), (0x10000, 0x20000), (0x1f300, 0x1fb00), (0x20000, 0x32000),
    (0x40000, 0x110000)]


def odd_strings(n: int, seed: int) -> list[str]:
    """Runs of spaces before digits, ZWJ emoji, control characters, special-token text, any code
    points."""
    rng, strings = random.Random(seed), []
    for _ in range(n):
        text = ""
        for _ in range(rng.randrange(10)):
            low, high = rng.choice(RANGES)
            text += rng.choice(PIECES) if rng.random() < 0.6 else "".join(
                chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 5)))
        strings.append(text)
    return strings


def tokenizer_json(kind: str, tokens: list[str], merges: list[tuple]) -> dict:
    """A tokenizer.json of each kind that is in use, on one small vocabulary."""
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": kind in ("gpt2", "smollm")}
    first = {
        "gpt2": [],
        "smollm": [{"type": "Digits", "individual_digits": True}],
    }.get(kind, [{
        "type": "Split", "pattern": {"Regex": LLAMA3 if kind == "llama3" else QWEN},
        "behavior": "Isolated", "invert": False}])
    if kind == "gpt2":
        # Ids in another order than merges, and a token that no merge makes.
        tokens = random.Random(0).sample(tokens, len(tokens))
        merges = [m for m in merges if "".join(m) != "Ġthe"]
    if kind == "smollm":
        # Bytes without a token, as in SmolLM2.
        tokens = [token for token in tokens if token not in ("Ą", "ñ", "ò", "ó")]
    if kind == "llama3":
        # Every way to split a token is a merge, as converted from tiktoken; and a word that none
        # makes.
        rank = {token: i for i, token in enumerate(tokens)}
        splits = [(token[:i], token[i:]) for token in tokens for i in range(1, len(token))]
        merges = sorted(
            (p for p in splits if p[0] in rank and p[1] in rank),
            key=lambda p: (rank[p[0] + p[1]], rank[p[0]]))
        tokens = [*tokens, "Ġqzxjk"]
    n = len(tokens)
    added = [
        {
            "id": n + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": text == "<é>", "special": special}
        for i, (text, special) in enumerate(ADDED.items())]
    template = {
        "type": "TemplateProcessing",
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}}],
        "single": [
            {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {
            "<|begin|>": {"id": "<|begin|>", "ids": [n], "tokens": ["<|begin|>"]}}}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None,
        "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": kind == "llama3",
        "vocab": {t: i for i, t in enumerate(tokens)},
        "merges": [
            list(m) for m in merges
            if m[0] in tokens and m[1] in tokens and m[0] + m[1] in tokens]}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if kind == "qwen" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*first, byte_level]},
        "post_processor": template if kind == "llama3" else None,
        "decoder": byte_level, "model": model}


BOS = {
    "__type": "AddedToken", "content": "<|begin|>", "lstrip": False, "normalized": False,
    "rstrip": False, "single_word": False}
KINDS = ("gpt2", "smollm", "qwen", "llama3")


def directory(path: Path, spec: dict, **config) -> Path:
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "bos_token": BOS, **config}))
    return path


def trained(kind: str, size: int) -> dict:
    """A tokenizer.json whose merges the `tokenizers` library has learned from this project's
    files."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library = Tokenizer.from_str(json.dumps(tokenizer_json(kind, ["a"], [])))
    corpus = [
        file.read_text(encoding="utf-8")
        for file in sorted(Path(__file__).parents[1].glob("**/*.py"))] + PIECES * 20
    library.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False))
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
    tokens, merges = record["tokens"], [tuple(m.split(" ")) for m in record["merges"]]
    path = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: load_tokenizer(directory(path / kind, tokenizer_json(kind, tokens, merges)))
        for kind in KINDS}


# ---------------------------------------------------------------------------------------------- ids

@pytest.mark.parametrize("kind", KINDS)
def test_recorded_ids(record, recorded, kind):
    tokenizer = recorded[kind]
    for text, plain, special in zip(
            record["strings"], record[kind]["plain"], record[kind]["special"]):
        assert tokenizer.encode(text) == plain, repr(text)
        assert tokenizer.encode(text, special=True) == special, repr(text)


def test_what_is_easily_missed(recorded, tmp_path):
    tokenizer = recorded["smollm"]
    # A byte without a token falls out.
    assert tokenizer.encode("-\x04-") == tokenizer.encode("--") and len(tokenizer.encode("--")) == 1
    # Digits are cut out first.
    assert tokenizer.encode("  7") == [*tokenizer.encode("  "), *tokenizer.encode("7")]
    # NFC
    assert (
        recorded["qwen"].encode("e\u0301")
        == recorded["qwen"].encode("é")
        != recorded["gpt2"].encode("e\u0301"))
    # NFC would make one character of > and U+0338, and the second token is looked for after it.
    qwen = recorded["qwen"]
    assert qwen.encode("<think>\u0338")[0] == qwen.added["<think>"]
    assert qwen.encode("<e\u0301>") == [qwen.added["<é>"]]
    # ignore_merges
    assert (
        len(recorded["llama3"].encode(" qzxjk")) == 1
        and len(recorded["llama3"].encode(" qzxjkq")) > 2)
    # A byte without a token falls out, or becomes the unknown token.
    spec = json.loads(tokenizer.files["tokenizer.json"])
    spec["model"]["unk_token"] = "!"
    assert load_tokenizer(directory(tmp_path, spec)).encode("-\x04-") == (
        tokenizer.encode("-!") + tokenizer.encode("-"))
    for tokenizer in recorded.values():
        end = tokenizer.eos_id
        assert (
            end not in tokenizer.encode("<|end|>")
            and tokenizer.encode("<|end|>", special=True) == [end])
        # The longer one wins.
        assert (
            tokenizer.encode("<|end|>x")
            == tokenizer.encode("<|end|>x", special=True)
            == [end + 1])
        # tiktoken alone panics.
        assert len(tokenizer.encode(" " * 10 ** 6 + "a")) > 10
        # Half a surrogate pair, which is not UTF-8.
        assert tokenizer.encode("\ud800\x04")


def test_runs_of_blanks_take_linear_time(tokenizer):
    """Four times as many blanks take at most about four times as long, not sixteen."""
    def seconds(n):
        started = time.perf_counter()
        tokenizer.encode(" " * n + "ab " * 40_000)
        return time.perf_counter() - started
    quarter, half, whole = (min(seconds(n) for _ in range(3)) for n in (20_000, 40_000, 80_000))
    assert half < 0.5 and whole < 8 * quarter


def test_decoding(recorded):
    for kind, tokenizer in recorded.items():
        for text in ("naïve 思考 👩‍👩‍👧 don't  99\r\n", "<think> <|end|>"):
            if kind != "smollm":
                assert tokenizer.decode(tokenizer.encode(text, special=True)) == text
        assert tokenizer.decode(
            [*tokenizer.encode("a"), tokenizer.eos_id, *tokenizer.encode("<think>")],
            skip_special=True) == "a<think>"
        # A row of the model that is no token.
        assert tokenizer.decode([*tokenizer.encode("a"), 10 ** 6]) == "a"
        assert tokenizer.decode(tokenizer.encode("é")[:1]) in ("é", "\ufffd")


@pytest.mark.parametrize("kind", KINDS)
def test_live_ids(tmp_path, kind):
    pytest.importorskip("tokenizers")
    spec, strings = trained(kind, 1200), odd_strings(3000, 1)
    tokenizer = load_tokenizer(directory(tmp_path, spec))
    for special in (False, True):
        assert [tokenizer.encode(text, special) for text in strings] == (
            library_ids(spec, strings, special))


@pytest.mark.skipif(
    "SMOLLM2" not in os.environ, reason="SMOLLM2 is not set to the directory of a SmolLM2")
def test_live_ids_of_smollm2():
    pytest.importorskip("tokenizers")
    path, strings = Path(os.environ["SMOLLM2"]), odd_strings(3000, 2)
    tokenizer, spec = (
        load_tokenizer(path),
        json.loads((path / "tokenizer.json").read_text(encoding="utf-8")))
    for special in (False, True):
        assert [tokenizer.encode(text, special) for text in strings] == (
            library_ids(spec, strings, special))


# -------------------------------------------------------------------------------------------- files

def test_a_plain_prompt_begins_as_the_models_own_tokenizer_begins_one(recorded, tmp_path):
    llama, gpt2 = recorded["llama3"], recorded["gpt2"]
    assert (
        encode_prompt(llama, "a") == [llama.bos_id, *llama.encode("a")]
        and encode_prompt(gpt2, "a") == gpt2.encode("a"))
    assert encode_completion(llama, "a", "b") == [*llama.encode("b"), llama.eos_id]
    for given, prefix in ((False, []), (True, [llama.bos_id])):
        assert load_tokenizer(directory(
            tmp_path, json.loads(llama.files["tokenizer.json"]),
            add_bos_token=given)).prefix == prefix


def test_stop_ids_come_from_three_files(recorded, tmp_path):
    spec = json.loads(recorded["qwen"].files["tokenizer.json"])
    tokenizer = load_tokenizer(directory(tmp_path, spec))
    assert tokenizer.stop_ids == {tokenizer.eos_id} and tokenizer.pad_id == tokenizer.eos_id
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    template = "{% for m in messages %}{{ m.content }}<|end|>x{{ eos_token }}!{% endfor %}"
    tokenizer = load_tokenizer(directory(tmp_path, spec, chat_template=template))
    assert tokenizer.stop_ids == {tokenizer.eos_id, 3, 4, 5}
    (tmp_path / "config.json").write_text('{"eos_token_id": "3"}')
    with pytest.raises(ValueError, match="config.json: eos_token_id is .'3'., expected an integer"):
        load_tokenizer(tmp_path)
    user, assistant = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    assert encode_completion(tokenizer, user, assistant) == [
        *tokenizer.encode("b<|end|>x"), tokenizer.eos_id]
    # The turn ends at the first of them.
    tokenizer.stop_ids.add(tokenizer.added["<|end|>x"])
    assert encode_completion(tokenizer, user, assistant) == tokenizer.encode("b<|end|>x")


def test_files_are_saved_as_they_were_read(recorded, tmp_path):
    path = directory(
        tmp_path / "a", json.loads(recorded["llama3"].files["tokenizer.json"]), chat_template="x")
    (path / "generation_config.json").write_text('{"eos_token_id": [4, 5], "top_p": 0.9}')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "chat_template.jinja").write_text("another tokenizer's")
    save_tokenizer(load_tokenizer(path), tmp_path / "b")
    assert {f.name: f.read_bytes() for f in (tmp_path / "b").iterdir()} == {
        f.name: f.read_bytes() for f in path.iterdir()}


@pytest.mark.parametrize("message, change", [
    ("model.type is 'Unigram', expected 'BPE'",
     lambda spec: spec["model"].update(type="Unigram")),
    ("model.type is 'WordPiece', expected 'BPE'",
     lambda spec: spec["model"].update(type="WordPiece")),
    ("model.byte_fallback is True",
     lambda spec: spec["model"].update(byte_fallback=True)),
    ("model.dropout is 0.1",
     lambda spec: spec["model"].update(dropout=0.1)),
    ("token '▁the' is not spelled in bytes",
     lambda spec: spec["model"]["vocab"].update({"▁the": spec["model"]["vocab"].pop("!")})),
    ("merge 0 is ",
     lambda spec: spec["model"]["merges"].insert(0, ["a", "☃"])),
    ("pre_tokenizer is .*Metaspace",
     lambda spec: spec.update(pre_tokenizer={"type": "Metaspace", "replacement": "▁"})),
    ("pre_tokenizer is .*Sequence",
     lambda spec: spec["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)),
    ("pre_tokenizer is .*Sequence",
     lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed")),
    ("normalizer is .*Lowercase",
     lambda spec: spec.update(normalizer={"type": "Lowercase"})),
    ("post_processor has .*RobertaProcessing",
     lambda spec: spec.update(post_processor={"type": "RobertaProcessing"})),
    ("added token '<think>' has lstrip",
     lambda spec: spec["added_tokens"][3].update(lstrip=True)),
    ("added token '<think>' has id 7, expected ",
     lambda spec: spec["added_tokens"][3].update(id=7)),
    ("not the tokenizer.json of a byte-level BPE: KeyError",
     lambda spec: spec.pop("model")),
    ("not the tokenizer.json of a byte-level BPE",
     lambda spec: spec.update(added_tokens=[3]))])
def test_what_is_not_supported_is_refused_in_one_line(recorded, tmp_path, message, change):
    spec = json.loads(recorded["qwen"].files["tokenizer.json"])
    change(spec)
    with pytest.raises(ValueError, match="tokenizer.json: " + message) as error:
        load_tokenizer(directory(tmp_path, spec))
    assert "\n" not in str(error.value)


def test_bad_files_are_named(recorded, tmp_path):
    spec = json.loads(recorded["qwen"].files["tokenizer.json"])
    with pytest.raises(ValueError, match="tokenizer_config.json: eos_token is None"):
        load_tokenizer(directory(tmp_path, spec, eos_token=None))
    with pytest.raises(ValueError, match="tokenizer.json: found list, expected a JSON object"):
        load_tokenizer(directory(tmp_path, []))
    for content in ("{", '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match="tokenizer.json: not JSON"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json: not found"):
        load_tokenizer(tmp_path)


def test_the_same_tokenizer_is_one_whose_ids_mean_the_same(recorded, tmp_path):
    """Whatever else its files say: a chat template, the order of keys."""
    qwen = recorded["qwen"]

    def changed(change, **config):
        spec = json.loads(qwen.files["tokenizer.json"])
        change(spec)
        return load_tokenizer(directory(tmp_path, dict(reversed(spec.items())), **config))

    again = changed(lambda spec: None, chat_template="{{ messages[0].content }}")
    assert again.files != qwen.files and same_tokenizer(qwen, again)

    assert not same_tokenizer(qwen, builtin_tokenizer())
    # as many ids, two of which mean something else
    assert not same_tokenizer(
        qwen, changed(lambda spec: spec["model"]["vocab"].update({"!": 1, "\"": 0})))
    assert not same_tokenizer(
        qwen, changed(lambda spec: spec["added_tokens"][0].update(content="<|start|>")))
    # the same bytes for each id, but "!" is a token of its own wherever it stands
    bang = {**json.loads(qwen.files["tokenizer.json"])["added_tokens"][1], "id": 0, "content": "!"}
    assert not same_tokenizer(qwen, changed(lambda spec: spec["added_tokens"].append(bang)))


# ----------------------------------------------------------------------------------- chat templates

MESSAGES = [{"role": "user", "content": "1 < 2 & é\n"}, {"role": "assistant", "content": "yes"}]
TEMPLATES = {
    "trim": (
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n"
        "{% endfor %}\n",
        "1 < 2 & é\n\n"),
    "tokens": (
        "{{ bos_token }}{{ messages[0].content|trim }}{{ eos_token }}"
        "{% if add_generation_prompt %}>{% endif %}",
        "<|begin|>1 < 2 & é<|end|>>"),
    "tojson": (
        "{{ messages[0]|tojson }}",
        '{"role": "user", "content": "1 < 2 & é\\n"}'),
    "loop controls": (
        "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
        "user"),
    "generation": (
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ messages[1].content }}"
        "{% endgeneration %}{{ x }}",
        "yes1"),
    "none": (
        "{{ tools is none and documents is none }}{{ pad_token is defined }}"
        "{{ strftime_now('%%') }}",
        "TrueFalse%")}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(recorded, tmp_path, name):
    """Rendered as `transformers` does (checked against it where it is installed), from the three
    places where a template may be."""
    (template, expected), spec = (
        TEMPLATES[name],
        json.loads(recorded["qwen"].files["tokenizer.json"]))
    several = [{"name": "tool_use", "template": "wrong"}, {"name": "default", "template": template}]
    for value in (template, several):
        assert load_tokenizer(directory(
            tmp_path, spec, chat_template=value)).apply_chat_template(MESSAGES) == expected
    directory(tmp_path, spec, chat_template="wrong")
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    assert load_tokenizer(tmp_path).apply_chat_template(MESSAGES) == expected
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(directory(tmp_path, spec))
    assert theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True) == expected


@pytest.mark.parametrize("template, message", [
    ("{{ raise_exception('roles must\nalternate') }}", "TemplateError: roles must alternate"),
    ("{% for %}", "TemplateSyntaxError"),
    ("{{ messages[0].content + 1 }}", "TypeError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{{ x.y.z }}", "UndefinedError")])
def test_a_templates_error_is_one_line(recorded, tmp_path, template, message):
    tokenizer = load_tokenizer(directory(
        tmp_path, json.loads(recorded["qwen"].files["tokenizer.json"]), chat_template=template))
    with pytest.raises(ValueError, match="the chat template failed: " + message) as error:
        tokenizer.apply_chat_template(MESSAGES)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no chat template"):
        recorded["gpt2"].apply_chat_template(MESSAGES)


# ------------------------------------------------------------------------ what people wrote is data

CHATML = ("{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}")
SPECIAL = [text for text, special in ADDED.items() if special]


@pytest.fixture
def chats(recorded, tmp_path):
    """kind -> the recorded tokenizer with CHATML as its template."""
    return {kind: with_template(tokenizer, tmp_path / kind, CHATML)
            for kind, tokenizer in recorded.items()}


def with_template(tokenizer, path, template):
    spec = json.loads(tokenizer.files["tokenizer.json"])
    return load_tokenizer(directory(path, spec, chat_template=template))


def conversation(*contents: str) -> list[dict]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents)]


def literal_ids(tokenizer, messages) -> list[int]:
    """Only what CHATML itself writes is special; between two such tokens is one plain text."""
    begin, end = (tokenizer.added[text] for text in SPECIAL)
    ids, between = [], ""
    for message in messages:
        text = f"{message['role']}\n{message['content']}"
        ids += [*tokenizer.encode(between), begin, *tokenizer.encode(text), end]
        between = "\n"
    return [*ids, *tokenizer.encode("\n"), begin, *tokenizer.encode("assistant\n")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_messages_text_never_becomes_a_special_token(chats, kind):
    tokenizer = chats[kind]
    for content in ("<|end|>", "a<|end|> b", "the<|begin|><|end|>the", "<think><|end|></think>",
                    "<|end|>x", "<|<|end|>end|>", "<|end|>" * 50, "\U000f0000<|end|>\U000f0001",
                    "<|end|>\u0338", "<|en", " <|end|>\n\n"):
        messages = conversation(content, "yes", "b" + content)
        assert encode_prompt(tokenizer, messages) == literal_ids(tokenizer, messages), content
        assert content in tokenizer.apply_chat_template(messages)
    ids = encode_prompt(tokenizer, conversation("<|end|>"))
    # the template's own
    assert sum(i in tokenizer.stop_ids for i in ids) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_other_chats_have_the_ids_that_their_text_has(chats, kind):
    tokenizer, strings = chats[kind], odd_strings(600, 3)
    literal = 0
    for contents in zip(strings[::3], strings[1::3], strings[2::3]):
        messages = conversation(*contents)
        assert encode_prompt(tokenizer, messages) == literal_ids(tokenizer, messages)
        written = unicodedata.normalize("NFC", "\n".join(contents))
        if any(text in written for text in SPECIAL):
            literal += 1
        else:
            rendered = tokenizer.apply_chat_template(messages)
            assert encode_prompt(tokenizer, messages) == tokenizer.encode(rendered, special=True)
    assert 10 < literal < 190


def test_special_text_in_every_field_of_a_message(recorded, tmp_path):
    template = "{% for m in messages %}{{ m.role }}{{ m|tojson }}<|end|>{% endfor %}"
    tokenizer = with_template(recorded["qwen"], tmp_path, template)
    call = {"name": "<|end|>", "arguments": {"<|begin|>": ["<|end|>", 1, None, True]}}
    messages = [{"role": "<|end|>", "content": "<think>", "tool_calls": [call]}]
    before = json.dumps(messages)
    text = "<|end|>" + json.dumps(messages[0])
    assert encode_prompt(tokenizer, messages) == [*tokenizer.encode(text), tokenizer.eos_id]
    assert json.dumps(messages) == before
    assert tokenizer.apply_chat_template(messages) == text + "<|end|>"


def test_odd_special_tokens_in_a_message(tmp_path):
    """Overlapping ones, one of a single character, and one that NFC makes of other characters."""
    files = builtin_tokenizer().files
    spec = json.loads(files["tokenizer.json"])
    spec["normalizer"] = {"type": "NFC"}
    for i, text in enumerate(("ab", "bc", "☃", "[K]"), 260):
        token = {"id": i, "content": text, "normalized": text == "[K]"}
        spec["added_tokens"].append({**spec["added_tokens"][0], **token})
    template = "☃{{ messages[0].content }}ab"
    path = directory(tmp_path, spec, eos_token="<|endoftext|>", chat_template=template)
    tokenizer = load_tokenizer(path)
    for content, plain in (("abc", "abc"), ("a☃b", "a☃b"), ("aabbcc", "aabbcc"), ("[K]", "[K]"),
                           ("[\u212a]", "[K]"), ("e\u0301☃", "é☃")):
        ids = encode_prompt(tokenizer, conversation(content))
        assert ids == [262, *plain.encode(), 260], content


if __name__ == "__main__":
    model = trained("qwen", 600)["model"]
    tokens, merges = list(model["vocab"]), [tuple(m) for m in model["merges"]]
    record = {
        "tokens": tokens,
        "merges": list(map(" ".join, merges)),
        "strings": odd_strings(120, 0)}
    for kind in KINDS:
        spec = tokenizer_json(kind, tokens, merges)
        record[kind] = {
            "plain": library_ids(spec, record["strings"], False),
            "special": library_ids(spec, record["strings"], True)}
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
        for name, value in record.items()]
    RECORD.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def test_a_template_that_is_not_utf_8_is_named(tmp_path):
    save_tokenizer(builtin_tokenizer(), tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"chat_template.jinja: byte 4 is not UTF-8"):
        load_tokenizer(tmp_path)
