"""Model directories: logits against those of `transformers`, recorded ones always, and live ones
where it is installed.

tests/logits.json holds what `transformers` computes for small models of each family, whose weights
come from a formula. To record it again, with `transformers` installed:
python tests/test_pretrained.py
"""
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

# For the recorder below.
sys.path.insert(0, str(Path(__file__).parents[1]))
from model import ModelConfig, ScalarModel, Transformer
from rollout import generate
from support.pretrained import load_pretrained, load_scalar_model, save_pretrained
from support.tokenizer import builtin_tokenizer, save_tokenizer

RECORD = Path(__file__).parent / "logits.json"
SIZES = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64}
PLAIN = {"rope_theta": 1000.0, "rope_type": "default"}
# config.json as transformers 4 and 5 write it, with and without the fields that have a default.
CONFIGS = {
    "llama": {
        "model_type": "llama", "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 500.0, "rope_scaling": None, "tie_word_embeddings": True},
    "llama, all defaults": {"model_type": "llama"},
    "llama, nulls": {
        "model_type": "llama", "head_dim": None, "num_key_value_heads": None,
        "tie_word_embeddings": True},
    "llama3, transformers 4": {
        "model_type": "llama", "rope_theta": 1000.0, "max_position_embeddings": 512,
        "rope_scaling": {**LLAMA3, "rope_type": "llama3"}},
    "llama3, transformers 5": {
        "model_type": "llama", "head_dim": 16,
        "rope_parameters": {**LLAMA3, "rope_type": "llama3", "rope_theta": 1000.0}},
    "qwen2": {
        "model_type": "qwen2", "num_key_value_heads": 2, "rope_theta": 1000.0,
        "use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1},
    "qwen2, transformers 5": {
        "model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True,
        "layer_types": ["full_attention"] * 2, "rope_parameters": PLAIN},
    "qwen3": {
        "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1000.0,
        "tie_word_embeddings": True},
    "qwen3, head_dim left out": {
        "model_type": "qwen3", "num_key_value_heads": 2, "rope_parameters": PLAIN},
    "mistral": {
        "model_type": "mistral", "num_key_value_heads": 2, "head_dim": 16,
        "sliding_window": None, "rope_theta": 100.0},
    "mistral, wide window": {
        "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 512,
        "max_position_embeddings": 512}}
TOKENS = torch.tensor([[(7 * t * t + 3 * t) % 256 for t in range(120)]])


def formula(name: str, shape) -> torch.Tensor:
    """Weights that any machine makes alike: sines of large arguments, of a size at which attention
    and biases matter."""
    n = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    x = torch.sin(n * 12.9898 + sum(map(ord, name))).reshape(list(shape)).float()
    return (
        1 + 0.3 * x if "norm" in name
        else 0.5 * x if name.endswith("bias")
        else x * (2.0 / shape[-1]) ** 0.5)


def directory(path: Path, config: dict, edit=lambda tensors: tensors) -> Path:
    """A Hugging Face directory of a small model, made without our writer but for the names of the
    tensors."""
    path.mkdir(parents=True, exist_ok=True)
    config = {**SIZES, **config}
    (path / "config.json").write_text(json.dumps(config))
    hs = config.get("head_dim") or (128 if config["model_type"] == "qwen3" else 8)
    nkv = config.get("num_key_value_heads") or 4
    shapes = {"model.embed_tokens.weight": (260, 32), "model.norm.weight": (32,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (260, 32)
    for i in range(2):
        layer = {
            "input_layernorm.weight": (32,), "post_attention_layernorm.weight": (32,),
            "self_attn.o_proj.weight": (32, 4 * hs),
            "mlp.gate_proj.weight": (48, 32), "mlp.up_proj.weight": (48, 32),
            "mlp.down_proj.weight": (32, 48)}
        for x, n in (("q", 4), ("k", nkv), ("v", nkv)):
            layer[f"self_attn.{x}_proj.weight"] = (n * hs, 32)
            if config["model_type"] == "qwen2":
                layer[f"self_attn.{x}_proj.bias"] = (n * hs,)
        if config["model_type"] == "qwen3":
            layer.update({"self_attn.q_norm.weight": (hs,), "self_attn.k_norm.weight": (hs,)})
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    save_file(
        edit({name: formula(name, shape) for name, shape in shapes.items()}),
        path / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(builtin_tokenizer(), path)
    return path


def theirs(path):
    transformers = pytest.importorskip("transformers")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.float().eval()


def continued(model) -> list[int]:
    """Greedily, by `transformers`."""
    prompt = TOKENS[:, :100]
    return model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False,
        eos_token_id=None, pad_token_id=0)[0, 100:].tolist()


# -------------------------------------------------------------------------------- the same function

@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_logits(tmp_path, name):
    record = json.loads(RECORD.read_text())[name]
    model, tokenizer = load_pretrained(directory(tmp_path, CONFIGS[name]))
    torch.testing.assert_close(
        model(TOKENS)[0, ::17, ::13], torch.tensor(record["logits"]), rtol=0, atol=1e-4)
    prompt = TOKENS[0, :100].tolist()
    assert generate(model, [prompt], 20, [], temperature=0).responses() == [record["greedy"]]


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_live_logits_before_and_after_saving(tmp_path, name):
    """Also what we write: the same logits in `transformers`, for the language model and the reward
    model."""
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_pretrained(directory(tmp_path / "a", CONFIGS[name]))
    save_pretrained(model, tokenizer, tmp_path / "b")
    again, _ = load_pretrained(tmp_path / "b")
    assert again.config == model.config and torch.equal(again(TOKENS), model(TOKENS))
    for path in (tmp_path / "a", tmp_path / "b"):
        other = theirs(path)
        torch.testing.assert_close(other(TOKENS).logits, model(TOKENS), rtol=0, atol=1e-4)
    assert generate(model, [TOKENS[0, :100].tolist()], 20, [], temperature=0).responses() == [
        continued(other)]
    scalar = ScalarModel(model)
    torch.nn.init.normal_(scalar.score.weight)
    save_pretrained(scalar, tokenizer, tmp_path / "rm")
    rewards = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "rm").float().eval()
    torch.testing.assert_close(
        rewards(TOKENS).logits[:, 0], scalar(TOKENS)[:, -1], rtol=0, atol=1e-4)
    assert torch.equal(load_scalar_model(tmp_path / "rm")[0](TOKENS), scalar(TOKENS))


@torch.no_grad()
@pytest.mark.skipif(
    "SMOLLM2" not in os.environ, reason="SMOLLM2 is not set to the directory of a SmolLM2")
def test_live_smollm2(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_pretrained(os.environ["SMOLLM2"], torch.float32)
    save_pretrained(model, tokenizer, tmp_path)
    other, their_tokenizer = theirs(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "How much is 12 + 30?"}]
    text = tokenizer.apply_chat_template(messages)
    assert text == their_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, special=True)
    assert ids == their_tokenizer(text, add_special_tokens=False).input_ids
    tokens = torch.tensor(
        [ids + tokenizer.encode("The quick brown fox jumps over 1234 lazy dogs. " * 8)])
    torch.testing.assert_close(other(tokens).logits, model(tokens), rtol=0, atol=1e-4)
    greedy = other.generate(
        torch.tensor([ids]), max_new_tokens=32, do_sample=False)[0, len(ids):].tolist()
    assert generate(model, [ids], 32, tokenizer.stop_ids, temperature=0).responses() == [greedy]


# ------------------------------------------------------------------------------------------ reading

@torch.no_grad()
def test_several_files_with_an_index(tmp_path):
    path = directory(tmp_path, CONFIGS["qwen2"])
    whole = load_pretrained(path)[0](TOKENS)
    tensors = load_file(path / "model.safetensors")
    names, index = sorted(tensors), path / "model.safetensors.index.json"
    parts = {f"model-{i + 1:05d}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, some in parts.items():
        # Of a tensor in two files the index says which.
        stale = {names[0]: tensors[names[0]] + 1} if "00002" in file else {}
        save_file({**{name: tensors[name] for name in some}, **stale}, path / file)
    weight_map = {name: file for file, some in parts.items() for name in some}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "model.safetensors").unlink()
    assert torch.equal(load_pretrained(path)[0](TOKENS), whole)
    for wrong, message in (
            (["x"], "index.json: weight_map"),
            ({**weight_map, names[0]: 3}, "index.json: weight_map"),
            ({name: file for name, file in weight_map.items() if "00002" not in file},
             f"model.safetensors.index.json: {names[1]} is missing")):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match=message):
            load_pretrained(path)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=(
            "model-00002-of-00003.safetensors: not found, "
            "but model.safetensors.index.json names it")):
        load_pretrained(path)


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_float_dtype(tmp_path, stored):
    path = directory(
        tmp_path, CONFIGS["qwen3"],
        lambda tensors: {name: x.to(stored) for name, x in tensors.items()})
    kept, wide = load_pretrained(path)[0], load_pretrained(path, torch.float64)[0]
    assert (
        {x.dtype for x in kept.state_dict().values()} == {stored}
        and {x.dtype for x in wide.state_dict().values()} == {torch.float64})
    assert (
        kept.cos.dtype == torch.float32
        and kept.lm_head.weight is kept.embed_tokens.weight
        and not kept.training)
    for name, x in load_file(path / "model.safetensors").items():
        assert torch.equal(wide.state_dict()[name.removeprefix("model.")], x.double())
    exact = load_pretrained(
        directory(tmp_path / "exact", CONFIGS["qwen3"]), torch.float64)[0](TOKENS)
    assert (kept(TOKENS) - exact).abs().max() < {
        torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.6}[stored]


@torch.no_grad()
def test_a_model_does_not_live_in_the_file_it_was_read_from(tmp_path):
    path = directory(tmp_path, CONFIGS["llama"])
    model, tokenizer = load_pretrained(path)
    logits, file = model(TOKENS), path / "model.safetensors"
    # written in place
    with open(file, "r+b") as f:
        f.write(b"\0" * file.stat().st_size)
    assert torch.equal(model(TOKENS), logits)
    save_pretrained(model, tokenizer, path)
    again, tokenizer = load_pretrained(path)
    save_pretrained(again, tokenizer, path)
    assert (
        torch.equal(again(TOKENS), logits)
        and torch.equal(load_pretrained(path)[0](TOKENS), logits))


def changed(**fields):
    return lambda config: {**config, **fields}


def without(field):
    return lambda config: {name: value for name, value in config.items() if name != field}


def added(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


def dropped(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize("name, message, change", [
    ("llama", "model_type is 'gemma', expected llama, mistral, qwen2, qwen3",
     changed(model_type="gemma")),
    ("llama", "model_type is 'qwen2_moe'", changed(model_type="qwen2_moe")),
    ("llama", "model_type is 'mixtral'", changed(model_type="mixtral")),
    ("llama", r"model_type is \['llama'\]", changed(model_type=["llama"])),
    ("llama", "model_type is missing", without("model_type")),
    ("llama", "config.json: found list, expected a JSON object", lambda config: [config]),
    ("llama", "hidden_size is missing, expected a positive integer", without("hidden_size")),
    ("llama", "hidden_size is '32', expected a positive integer", changed(hidden_size="32")),
    ("llama", "num_hidden_layers is 2.0", changed(num_hidden_layers=2.0)),
    ("llama", "num_hidden_layers is True", changed(num_hidden_layers=True)),
    ("llama", "num_attention_heads is 0", changed(num_attention_heads=0)),
    ("llama", "num_key_value_heads is 0", changed(num_key_value_heads=0)),
    ("llama", "config.json: dim 32 must be a multiple of n_heads 3",
     changed(num_attention_heads=3)),
    ("llama", "rope_theta is None, expected a positive number", changed(rope_theta=None)),
    ("llama", "rope_theta is nan, expected a positive number", changed(rope_theta=float("nan"))),
    ("llama", "rms_norm_eps is inf, expected a positive number",
     changed(rms_norm_eps=float("inf"))),
    ("llama", "rms_norm_eps is '1e-5'", changed(rms_norm_eps="1e-5")),
    ("llama", "tie_word_embeddings is 'yes', expected true or false",
     changed(tie_word_embeddings="yes")),
    ("llama", "hidden_act is 'gelu', expected \"silu\"", changed(hidden_act="gelu")),
    ("llama", "attention_bias is True", changed(attention_bias=True)),
    ("llama", "mlp_bias is True", changed(mlp_bias=True)),
    ("llama", "quantization_config is", changed(quantization_config={"quant_method": "fp8"})),
    ("llama", "partial_rotary_factor is 0.5", changed(partial_rotary_factor=0.5)),
    ("llama", "rope_scaling is .*yarn.*expected rope_type default",
     changed(rope_scaling={"rope_type": "yarn", "factor": 4.0})),
    ("llama", "rope_scaling is .*linear",
     changed(rope_scaling={"type": "linear", "factor": 4.0})),
    ("llama", r"rope_scaling is \[4.0\]", changed(rope_scaling=[4.0])),
    ("llama", "rope_parameters is .*full_attention",
     changed(rope_parameters={"full_attention": PLAIN})),
    ("llama", "rope_parameters is .*partial",
     changed(rope_parameters={**PLAIN, "partial_rotary_factor": 0.5})),
    ("llama", "factor is 'x', expected a positive number",
     changed(rope_scaling={**LLAMA3, "rope_type": "llama3", "factor": "x"})),
    ("llama", "low_freq_factor is missing",
     changed(rope_scaling={"rope_type": "llama3", "factor": 8.0})),
    ("llama", "vocab_size is 259, but tokenizer.json has ids up to 259", changed(vocab_size=259)),
    ("mistral", "sliding_window is 64",
     changed(sliding_window=64, max_position_embeddings=128)),
    ("mistral", "sliding_window is 4096", without("sliding_window")),
    ("qwen2", "sliding_window is 8", changed(use_sliding_window=True)),
    ("qwen2", "layer_types is .*sliding_attention",
     changed(layer_types=["full_attention", "sliding_attention"])),
    ("qwen3", "attention_bias is True", changed(attention_bias=True))])
def test_a_config_that_is_not_supported_is_refused(tmp_path, name, message, change):
    path = directory(tmp_path, CONFIGS[name])
    (path / "config.json").write_text(
        json.dumps(change(json.loads((path / "config.json").read_text()))))
    with pytest.raises(ValueError, match=(
            "config.json: " + message if "config.json: " not in message else message)) as error:
        load_pretrained(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, message, edit", [
    ("llama", "model.norm.weight is missing", dropped("model.norm.weight")),
    ("qwen2", "model.layers.1.self_attn.k_proj.bias is missing",
     dropped("model.layers.1.self_attn.k_proj.bias")),
    ("llama, all defaults", "lm_head.weight is missing", dropped("lm_head.weight")),
    ("llama", "layers.0.self_attn.q_proj.bias is not part of this model",
     added("model.layers.0.self_attn.q_proj.bias", torch.zeros(32))),
    ("llama", "model.layers.2.input_layernorm.weight is not part",
     added("model.layers.2.input_layernorm.weight", torch.zeros(32))),
    ("llama", "lm_head.weight differs from the embedding",
     added("lm_head.weight", torch.zeros(260, 32))),
    ("llama", r"model.norm.weight has shape \(1, 32\), config.json says \(32,\)",
     added("model.norm.weight", torch.zeros(1, 32))),
    ("llama", "model.norm.weight has dtype I8, expected F64",
     added("model.norm.weight", torch.zeros(32, dtype=torch.int8)))])
def test_tensors_that_are_not_the_models_are_refused(tmp_path, name, message, edit):
    def edited(tensors):
        edit(tensors)
        return tensors
    with pytest.raises(ValueError, match="model.safetensors: .*" + message):
        load_pretrained(directory(tmp_path, CONFIGS[name], edited))


@torch.no_grad()
def test_a_tied_head_may_be_in_the_file(tmp_path):
    path = directory(
        tmp_path, CONFIGS["llama"],
        lambda x: {**x, "lm_head.weight": x["model.embed_tokens.weight"].clone()})
    model = load_pretrained(path)[0]
    assert model.lm_head.weight is model.embed_tokens.weight


@pytest.mark.parametrize("size", [0, 5, 2000, -1])
def test_a_cut_off_file_is_refused(tmp_path, size):
    file = directory(tmp_path, CONFIGS["llama"]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="model.safetensors: cut off"):
        load_pretrained(tmp_path)


def test_a_language_model_is_no_reward_model(tmp_path):
    path = directory(tmp_path, CONFIGS["llama"])
    with pytest.raises(ValueError, match="score.weight is missing"):
        load_scalar_model(path)
    model, tokenizer = load_pretrained(path)
    save_pretrained(ScalarModel(model), tokenizer, path)
    assert json.loads((path / "config.json").read_text())["pad_token_id"] == tokenizer.pad_id
    with pytest.raises(ValueError, match="score.weight is not part of this model"):
        load_pretrained(path)
    tokenizer.pad_id = tokenizer.eos_id
    save_pretrained(ScalarModel(model), tokenizer, path)
    # Else `transformers` would score the token before the stop token.
    assert json.loads((path / "config.json").read_text())["pad_token_id"] is None
    with pytest.raises(ValueError, match="both qkv_bias and qk_norm"):
        save_pretrained(
            Transformer(ModelConfig(260, 16, 1, 2, 2, 16, qkv_bias=True, qk_norm=True)),
            tokenizer, path)


if __name__ == "__main__":
    import tempfile
    record = {}
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as tmp, torch.no_grad():
            model = theirs(directory(Path(tmp), config))
            logits = model(TOKENS).logits[0, ::17, ::13]
            record[name] = {
                "logits": [[round(x, 6) for x in row] for row in logits.tolist()],
                "greedy": continued(model)}
    RECORD.write_text("{" + ",\n".join(
        f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()) + "}\n")
