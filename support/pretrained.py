"""Hugging Face model directories, read and written without `transformers`.

They are config.json, *.safetensors and the tokenizer's files, of Llama, Qwen2, Qwen3, and Mistral
without a sliding window. Our parameters carry their names, so reading is a change of prefix. Fields
that a config.json leaves out have the family's defaults; whatever we would compute differently is
refused by file and field. Every tensor must be there, in its shape, and none may be left over: a
wrong model never loads silently.
"""
import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model import ModelConfig, ScalarModel, Transformer
from support.tokenizer import Tokenizer, load_tokenizer, parse_object, save_tokenizer

# Field of a ModelConfig -> field of a config.json.
FIELDS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "head_dim": "head_dim",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
ROPE_SCALING = ("factor", "low_freq_factor", "high_freq_factor",
                "original_max_position_embeddings")
# What a config.json means that leaves a field out; of some fields each family has its own default.
DEFAULTS = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
            "head_dim": None}
FAMILIES = {
    "llama": {"num_key_value_heads": None, "max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128},
}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_pretrained(path, dtype=None, device=None,
                    build=Transformer) -> tuple[Transformer, Tokenizer]:
    """A causal language model and its tokenizer, in eval mode. dtype=None keeps the files'.

    build: a Transformer's class. Errors: FileNotFoundError or ValueError naming the file and the
    field, found and expected."""
    return _load(Path(path), build, dtype, device)


def load_scalar_model(path, dtype=None, device=None,
                      build=Transformer) -> tuple[ScalarModel, Tokenizer]:
    """A reward model: a sequence classifier with one label and a bias-free `score` head.

    build: of its trunk. Errors as `load_pretrained`."""
    return _load(Path(path), lambda config: ScalarModel(build(config)), dtype, device)


def save_pretrained(model: Transformer | ScalarModel, tokenizer: Tokenizer, path) -> None:
    """Write a directory that load_pretrained (a ScalarModel: load_scalar_model) reads.

    `transformers` and TRL read it as well. config.json comes last. A Mistral is written as the
    Llama that it is without a sliding window."""
    path = Path(path)
    if model.config.qkv_bias and model.config.qk_norm:
        raise ValueError("a model with both qkv_bias and qk_norm can't be written: "
                         "no family has both")
    path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, x in model.state_dict().items():
        tensors[_name_in_file(name)] = x.detach().cpu().contiguous()
    if model.config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, path)
    text = json.dumps(_describe(model, tokenizer), indent=2) + "\n"
    (path / "config.json").write_text(text, encoding="utf-8")


def _describe(model: Transformer | ScalarModel, tokenizer: Tokenizer) -> dict:
    """What the config.json of a model says."""
    config = model.config
    if config.qk_norm:
        family = "qwen3"
    elif config.qkv_bias:
        family = "qwen2"
    else:
        family = "llama"
    is_scalar = isinstance(model, ScalarModel)
    architecture = "ForSequenceClassification" if is_scalar else "ForCausalLM"
    stop_ids = sorted(tokenizer.stop_ids)
    fields = {"architectures": [family.capitalize() + architecture], "model_type": family}
    for ours, theirs in FIELDS.items():
        fields[theirs] = getattr(config, ours)
    scaling = config.rope_scaling
    fields["rope_scaling"] = scaling and {"rope_type": "llama3", **scaling}
    fields["hidden_act"] = "silu"
    fields["attention_bias"] = False
    fields["mlp_bias"] = False
    fields["bos_token_id"] = tokenizer.bos_id
    fields["eos_token_id"] = stop_ids if len(stop_ids) > 1 else tokenizer.eos_id
    fields["pad_token_id"] = tokenizer.pad_id
    fields["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    if is_scalar:
        fields["id2label"] = {"0": "LABEL_0"}
        fields["label2id"] = {"LABEL_0": 0}
        # `transformers` scores the last token that isn't padding: it must not take a stop token for
        # padding.
        if tokenizer.pad_id in stop_ids:
            fields["pad_token_id"] = None
    return fields


def _load(path: Path, build, dtype, device):
    """The model and the tokenizer of a directory. build: ModelConfig -> a model."""
    file = path / "config.json"
    config = read_config(file)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"{file}: vocab_size is {config.vocab_size}, "
                         f"but tokenizer.json has ids up to {tokenizer.vocab_size - 1}")
    # Tensors on this device take no memory yet, and no time for random weights.
    with torch.device("meta"):
        model = build(config)
    shapes = {_name_in_file(name): tuple(x.shape) for name, x in model.state_dict().items()}
    tensors = _read_tensors(path, shapes, config.tie_embeddings, dtype, device)
    if config.tie_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    state = {name: tensors[_name_in_file(name)] for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings and isinstance(model, Transformer):
        # They are one Parameter again, not two of the same memory.
        model.lm_head.weight = model.embed_tokens.weight
    return model.to(device).eval(), tokenizer


def _name_in_file(name: str) -> str:
    """The name that a parameter of ours has in a file.

    embed_tokens.weight or trunk.embed_tokens.weight -> model.embed_tokens.weight; the two kinds of
    head have no prefix."""
    if name in ("lm_head.weight", "score.weight"):
        return name
    return "model." + name.removeprefix("trunk.")


# ------------------------------------------------------------------------------------- config.json

def read_config(file: Path) -> ModelConfig:
    """The model that a config.json describes. ValueError if we would compute another one."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found, expected a Hugging Face model directory")
    found = parse_object(file.read_bytes(), file)
    family = found.get("model_type")
    config = {**DEFAULTS, **FAMILIES.get(str(family), {}), **found}
    if str(family) not in FAMILIES:
        _refuse(file, config, "model_type", ", ".join(FAMILIES))
    rope, scaling = _read_rope(file, config)
    config.update(rope)
    if config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = config.get("num_attention_heads")
    for field in (*FIELDS.values(), *scaling):
        _check_type(file, config, field)
    _check_features(file, config)
    _check_window(file, config)
    ours = {name: config[field] for name, field in FIELDS.items()}
    rope_scaling = {field: config[field] for field in scaling}
    try:
        return ModelConfig(**ours, qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
                           rope_scaling=rope_scaling or None)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _refuse(file: Path, config: dict, field: str, expected: str) -> None:
    """ValueError: file and field, found and expected."""
    found = repr(config[field]) if field in config else "missing"
    raise ValueError(f"{file}: {field} is {found}, expected {expected}")


def _read_rope(file: Path, config: dict) -> tuple[dict, tuple[str, ...]]:
    """The fields of the rotary embedding, and the names of those that scale it."""
    # transformers 4 writes the one field, transformers 5 the other.
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(field) or {}
    kind = None
    if isinstance(rope, dict):
        kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = ROPE_SCALING if kind == "llama3" else ()
    known = {"rope_type", "type", "rope_theta", *scaling}
    if kind not in ("default", "llama3") or rope.keys() - known:
        _refuse(file, config, field, "rope_type default and rope_theta, "
                f"or llama3 with {', '.join(ROPE_SCALING)}")
    return rope, scaling


def _check_type(file: Path, config: dict, field: str) -> None:
    """ValueError unless one of our fields has a value of its type, and a positive one."""
    if field == "tie_word_embeddings":
        kinds, expected = {bool}, "true or false"
    elif field in ("rope_theta", "rms_norm_eps", *ROPE_SCALING):
        kinds, expected = {int, float}, "a positive number"
    elif field == "head_dim":
        kinds, expected = {int, type(None)}, "a positive integer"
    else:
        kinds, expected = {int}, "a positive integer"
    value = config.get(field)
    is_number = type(value) in (int, float)
    # JSON as Python reads it may hold NaN and Infinity.
    if type(value) not in kinds or is_number and not 0 < value < math.inf:
        _refuse(file, config, field, expected)


def _check_features(file: Path, config: dict) -> None:
    """ValueError if a field asks for what our model doesn't do."""
    all_full = ["full_attention"] * config["num_hidden_layers"]
    supported = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
                 "quantization_config": None, "partial_rotary_factor": 1.0,
                 "layer_types": all_full}
    for field, expected in supported.items():
        if config.get(field) not in (None, expected):
            _refuse(file, config, field, json.dumps(expected))


def _check_window(file: Path, config: dict) -> None:
    """ValueError if attention sees less than the whole context."""
    if config["model_type"] != "mistral" and not config.get("use_sliding_window"):
        return
    # This is what both families mean by a field that is not there.
    window = config.get("sliding_window", 4096)
    if window is None:
        return
    if type(window) is not int or window < config["max_position_embeddings"]:
        config["sliding_window"] = window
        _refuse(file, config, "sliding_window", "null, use_sliding_window false, "
                "or at least max_position_embeddings")


# ----------------------------------------------------------------------------------------- tensors

def _read_tensors(path: Path, shapes: dict[str, tuple], tied: bool, dtype,
                  device) -> dict[str, torch.Tensor]:
    """name -> tensor, from one file or those that the index names.

    Names and shapes are checked before anything is read."""
    found = _open_files(path)
    head = None
    if tied and "lm_head.weight" in shapes:
        # The head is the embedding, but some write it all the same.
        shapes = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
        head = found.pop("lm_head.weight", None)
    _check_tensors(path, shapes, found)
    if head:
        _check_head(head, found)
    if not dtype:
        _, opened = found["model.embed_tokens.weight"]
        dtype = DTYPES[opened.get_slice("model.embed_tokens.weight").get_dtype()]
    tensors = {}
    for name, (_, opened) in found.items():
        # It is copied, because what is read may lie in the mapped file, and that may be written
        # again.
        tensors[name] = opened.get_tensor(name).to(device, dtype, copy=True)
    return tensors


def _open_files(path: Path) -> dict[str, tuple]:
    """Tensor -> (file, opened file), of all tensors in the files of a directory."""
    whole = path / "model.safetensors"
    index = path / "model.safetensors.index.json"
    # Tensor -> name of its file, where there are several.
    weight_map = None
    names = [whole.name]
    if index.is_file() and not whole.is_file():
        weight_map = parse_object(index.read_bytes(), index).get("weight_map")
        is_map = isinstance(weight_map, dict)
        if not is_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index}: weight_map is not there or not from tensors to files")
        names = sorted(set(weight_map.values()))
    found = {}
    for name in names:
        file = path / name
        if not file.is_file():
            why = "" if weight_map is None else f", but {index.name} names it"
            raise FileNotFoundError(f"{file}: not found{why}")
        try:
            opened = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{file}: cut off or not a safetensors file ({error})") from None
        for tensor in opened.keys():
            # Of a tensor that is in two files, the index says which one counts.
            if weight_map is None or weight_map.get(tensor, name) == name:
                found[tensor] = file, opened
    return found


def _check_tensors(path: Path, shapes: dict[str, tuple], found: dict[str, tuple]) -> None:
    """ValueError unless the files have the tensors of these shapes and no others."""
    listing = path / "model.safetensors"
    if not listing.is_file():
        listing = path / "model.safetensors.index.json"
    for name in {**shapes, **found}:
        if name not in found:
            raise ValueError(f"{listing}: {name} is missing")
        file, opened = found[name]
        if name not in shapes:
            raise ValueError(f"{file}: {name} is not part of this model")
        shape = tuple(opened.get_slice(name).get_shape())
        kind = opened.get_slice(name).get_dtype()
        if shape != shapes[name]:
            raise ValueError(f"{file}: {name} has shape {shape}, config.json says {shapes[name]}")
        if kind not in DTYPES:
            raise ValueError(f"{file}: {name} has dtype {kind}, expected {', '.join(DTYPES)}")


def _check_head(head: tuple, found: dict[str, tuple]) -> None:
    """ValueError unless a head that is written beside the embedding is the embedding."""
    head_file, opened_head = head
    _, opened = found["model.embed_tokens.weight"]
    weight = opened_head.get_tensor("lm_head.weight")
    if not torch.equal(weight, opened.get_tensor("model.embed_tokens.weight")):
        raise ValueError(f"{head_file}: lm_head.weight differs from the embedding, "
                         "but config.json says tie_word_embeddings")
