"""Hugging Face model directories, read and written without `transformers`: config.json, *.safetensors, tokenizer files.

Llama, Qwen2, Qwen3, and Mistral without a sliding window. Our parameters carry their names, so reading is a change of prefix. Fields
that a config.json leaves out have the family's defaults; whatever we would compute differently is refused by file and field. Every
tensor must be there, in its shape, and none may be left over: a wrong model never loads silently.
"""
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model import ModelConfig, ScalarModel, Transformer
from support.tokenizer import Tokenizer, load_tokenizer, parse_object, save_tokenizer

FIELDS = {"vocab_size": "vocab_size", "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
          "n_kv_heads": "num_key_value_heads", "ffn_dim": "intermediate_size", "max_seq_len": "max_position_embeddings",
          "head_dim": "head_dim", "rope_theta": "rope_theta", "norm_eps": "rms_norm_eps", "tie_embeddings": "tie_word_embeddings"}
ROPE_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
DEFAULTS = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "head_dim": None}
FAMILIES = {"llama": {"num_key_value_heads": None, "max_position_embeddings": 2048},
            "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072},
            "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768},
            "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128}}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_pretrained(path, dtype=None, device=None) -> tuple[Transformer, Tokenizer]:
    """A causal language model and its tokenizer, in eval mode. dtype=None keeps the files'.

    Errors: FileNotFoundError or ValueError naming the file and the field, found and expected."""
    return _load(Path(path), Transformer, dtype, device)


def load_scalar_model(path, dtype=None, device=None) -> tuple[ScalarModel, Tokenizer]:
    """A reward model: a sequence classifier with one label and a bias-free `score` head. Errors as `load_pretrained`."""
    return _load(Path(path), lambda config: ScalarModel(Transformer(config)), dtype, device)


def save_pretrained(model: Transformer | ScalarModel, tokenizer: Tokenizer, path) -> None:
    """Write a directory that load_pretrained (a ScalarModel: load_scalar_model), `transformers` and TRL read; config.json comes last.

    A Mistral is written as the Llama that it is without a sliding window."""
    path, config, scalar = Path(path), model.config, isinstance(model, ScalarModel)
    if config.qkv_bias and config.qk_norm:
        raise ValueError("a model with both qkv_bias and qk_norm can't be written: no family has both")
    path.mkdir(parents=True, exist_ok=True)
    tensors = {_name_in_file(name): x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, path)
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    stop_ids, pad_id = sorted(tokenizer.stop_ids), tokenizer.pad_id
    written = {"architectures": [family.capitalize() + ("ForSequenceClassification" if scalar else "ForCausalLM")], "model_type": family,
               **{hf: getattr(config, ours) for ours, hf in FIELDS.items()},
               "rope_scaling": config.rope_scaling and {"rope_type": "llama3", **config.rope_scaling},
               "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "bos_token_id": tokenizer.bos_id,
               "eos_token_id": stop_ids if len(stop_ids) > 1 else tokenizer.eos_id, "pad_token_id": pad_id,
               "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    if scalar:                # `transformers` scores the last token that isn't padding: it must not take a stop token for padding
        written.update(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, pad_token_id=None if pad_id in stop_ids else pad_id)
    (path / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _load(path: Path, build, dtype, device):
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found, expected a Hugging Face model directory")
    config, tokenizer = _read_config(file), load_tokenizer(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"{file}: vocab_size is {config.vocab_size}, but tokenizer.json has ids up to {tokenizer.vocab_size - 1}")
    with torch.device("meta"):                       # no memory yet, and no time spent on random weights
        model = build(config)
    shapes = {_name_in_file(name): tuple(x.shape) for name, x in model.state_dict().items()}
    tensors = _read_tensors(path, shapes, config.tie_embeddings, dtype, device)
    if config.tie_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict({name: tensors[_name_in_file(name)] for name in model.state_dict()}, assign=True)
    if config.tie_embeddings and isinstance(model, Transformer):
        model.lm_head.weight = model.embed_tokens.weight               # one Parameter again, not two of the same memory
    return model.to(device).eval(), tokenizer


def _name_in_file(name: str) -> str:
    """embed_tokens.weight or trunk.embed_tokens.weight -> model.embed_tokens.weight; the two kinds of head have no prefix."""
    return name if name in ("lm_head.weight", "score.weight") else "model." + name.removeprefix("trunk.")


def _read_config(file: Path) -> ModelConfig:
    found = parse_object(file.read_bytes(), file)
    family = found.get("model_type")
    config = {**DEFAULTS, **FAMILIES.get(str(family), {}), **found}

    def refuse(field, expected):
        raise ValueError(f"{file}: {field} is {repr(config[field]) if field in config else 'missing'}, expected {expected}")

    if str(family) not in FAMILIES:
        refuse("model_type", ", ".join(FAMILIES))
    rope_field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"                   # transformers 4 and 5
    rope = config.get(rope_field) or {}
    rope_type = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    scaling = ROPE_SCALING if rope_type == "llama3" else ()
    if rope_type not in ("default", "llama3") or rope.keys() - {"rope_type", "type", "rope_theta", *scaling}:
        refuse(rope_field, f"rope_type default and rope_theta, or llama3 with {', '.join(ROPE_SCALING)}")
    config.update(rope)
    if config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = config.get("num_attention_heads")

    for field in (*FIELDS.values(), *scaling):
        kinds, expected = (({bool}, "true or false") if field == "tie_word_embeddings" else
                           ({int, float}, "a positive number") if field in ("rope_theta", "rms_norm_eps", *scaling) else
                           ({int, type(None)} if field == "head_dim" else {int}, "a positive integer"))
        value = config.get(field)
        if type(value) not in kinds or type(value) in (int, float) and value <= 0:
            refuse(field, expected)
    for field, expected in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None,
                            "partial_rotary_factor": 1.0, "layer_types": ["full_attention"] * config["num_hidden_layers"]}.items():
        if config.get(field) not in (None, expected):
            refuse(field, json.dumps(expected))
    window = config.get("sliding_window", 4096) if family == "mistral" or config.get("use_sliding_window") else None
    if window is not None and not (type(window) is int and window >= config["max_position_embeddings"]):
        config["sliding_window"] = window
        refuse("sliding_window", "null, use_sliding_window false, or at least max_position_embeddings")
    try:
        return ModelConfig(**{ours: config[hf] for ours, hf in FIELDS.items()}, qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
                           rope_scaling={field: config[field] for field in scaling} or None)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _read_tensors(path: Path, shapes: dict[str, tuple], tied: bool, dtype, device) -> dict[str, torch.Tensor]:
    """name -> tensor, from one file or those that the index names. Names and shapes are checked before anything is read."""
    index, weight_map = path / "model.safetensors.index.json", None
    if index.is_file() and not (path / "model.safetensors").is_file():
        weight_map = parse_object(index.read_bytes(), index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index}: weight_map is not there or not from tensors to files")
    found = {}                                                                                         # name -> file, opened file
    for name in ["model.safetensors"] if weight_map is None else sorted(set(weight_map.values())):
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: not found" + ("" if weight_map is None else f", but {index.name} names it"))
        try:
            opened = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{file}: cut off or not a safetensors file ({error})") from None
        found.update({tensor: (file, opened) for tensor in opened.keys() if weight_map is None or weight_map.get(tensor, name) == name})

    head = found.pop("lm_head.weight", None) if tied and shapes.pop("lm_head.weight", None) else None  # some write it all the same
    for name in {**shapes, **found}:
        file, opened = found.get(name, (path / "model.safetensors", None))
        if opened is None or name not in shapes:
            raise ValueError(f"{file}: {name} is {'missing' if opened is None else 'not part of this model'}")
        shape, kind = tuple(opened.get_slice(name).get_shape()), opened.get_slice(name).get_dtype()
        if shape != shapes[name]:
            raise ValueError(f"{file}: {name} has shape {shape}, config.json says {shapes[name]}")
        if kind not in DTYPES:
            raise ValueError(f"{file}: {name} has dtype {kind}, expected {', '.join(DTYPES)}")
    file, opened = found["model.embed_tokens.weight"]
    if head and not torch.equal(head[1].get_tensor("lm_head.weight"), opened.get_tensor("model.embed_tokens.weight")):
        raise ValueError(f"{head[0]}: lm_head.weight differs from the embedding, but config.json says tie_word_embeddings")
    dtype = dtype or DTYPES[opened.get_slice("model.embed_tokens.weight").get_dtype()]
    # copied, because what is read may lie in the mapped file, and that may be written again
    return {name: opened.get_tensor(name).to(device, dtype, copy=True) for name, (_, opened) in found.items()}
