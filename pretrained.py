"""Hugging Face model directories, read and written without `transformers`: config.json, model.safetensors, tokenizer files.

Llama and Qwen3. Our parameters carry their names, so reading is a rename of prefixes. What can't be loaded is refused by file and field.
"""
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model import ModelConfig, ScalarModel, Transformer
from tokenizer import Tokenizer, load_tokenizer, save_tokenizer

FIELDS = {"vocab_size": "vocab_size", "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
          "n_kv_heads": "num_key_value_heads", "ffn_dim": "intermediate_size", "max_seq_len": "max_position_embeddings",
          "rope_theta": "rope_theta", "norm_eps": "rms_norm_eps", "tie_embeddings": "tie_word_embeddings"}


def load_pretrained(path, dtype=None, device=None) -> tuple[Transformer, Tokenizer]:
    """A causal language model and its tokenizer, in eval mode. dtype=None keeps the file's.

    Errors: FileNotFoundError or ValueError naming the file and the field, found and expected."""
    path = Path(path)
    model = Transformer(_read_config(path))
    tensors = {name.removeprefix("model."): x for name, x in _read_tensors(path).items()}
    if model.config.tie_embeddings:
        tensors.setdefault("lm_head.weight", tensors.get("embed_tokens.weight"))
    return _fill(model, tensors, path, dtype, device), load_tokenizer(path)


def load_scalar_model(path, dtype=None, device=None) -> tuple[ScalarModel, Tokenizer]:
    """A reward model: a sequence classifier with one label and a bias-free `score` head. Errors as `load_pretrained`."""
    path = Path(path)
    model = ScalarModel(Transformer(_read_config(path)))
    tensors = {name.replace("model.", "trunk.", 1): x for name, x in _read_tensors(path).items()}
    return _fill(model, tensors, path, dtype, device), load_tokenizer(path)


def save_pretrained(model: Transformer | ScalarModel, tokenizer, path) -> None:
    """Write a directory that load_pretrained (a ScalarModel: load_scalar_model), `transformers` and TRL read."""
    path, scalar = Path(path), isinstance(model, ScalarModel)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {(name.replace("trunk.", "model.", 1) if scalar else name if name == "lm_head.weight" else f"model.{name}"):
               x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    if model.config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    family = "qwen3" if model.config.qk_norm else "llama"
    config = {"architectures": [family.capitalize() + ("ForSequenceClassification" if scalar else "ForCausalLM")], "model_type": family,
              **{hf: getattr(model.config, ours) for ours, hf in FIELDS.items()}, "hidden_act": "silu", "attention_bias": False,
              "mlp_bias": False, "head_dim": model.config.head_dim, "bos_token_id": None, "eos_token_id": tokenizer.eos_id,
              "pad_token_id": tokenizer.pad_id, "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    if scalar:
        config.update(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, path)


def _read_config(path: Path) -> ModelConfig:
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found, expected a Hugging Face model directory")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    family = config.get("model_type")
    if family not in ("llama", "qwen3"):
        raise ValueError(f"{file}: model_type is {family!r}, supported are 'llama' and 'qwen3'")
    for field, expected in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
                            "rope_scaling": None, "rope_parameters": None,
                            "use_sliding_window": False}.items():
        if config.get(field, expected) != expected:
            raise ValueError(f"{file}: {field} is {config[field]!r}, supported is {expected!r}")
    for hf in FIELDS.values():
        if hf not in config:
            raise ValueError(f"{file}: {hf} is missing")
    if config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]) * config["num_attention_heads"] != config["hidden_size"]:
        raise ValueError(f"{file}: head_dim is {config['head_dim']}, supported is hidden_size / num_attention_heads")
    return ModelConfig(**{ours: config[hf] for ours, hf in FIELDS.items()}, qk_norm=family == "qwen3")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    file = path / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: cut off or not a safetensors file ({error})") from None


def _fill(model, tensors: dict[str, torch.Tensor], path: Path, dtype, device):
    """Load every tensor by name and shape; nothing missing, nothing left over."""
    file, expected = path / "model.safetensors", model.state_dict()
    for name in expected.keys() ^ tensors.keys():
        raise ValueError(f"{file}: {name} is {'missing' if name in expected else 'not part of this model'}")
    for name, x in expected.items():
        if x.shape != tensors[name].shape:
            raise ValueError(f"{file}: {name} has shape {tuple(tensors[name].shape)}, config.json says {tuple(x.shape)}")
    model.load_state_dict(tensors)
    return model.to(device=device, dtype=dtype or next(iter(tensors.values())).dtype).eval()
