"""What support/memory.py adds up, against tensors: each term, and the peak of whole runs. And the
command that prints it."""
import importlib
import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import evaluate
import rollout
from model import ModelConfig, ScalarModel, Transformer
from rollout import token_log_probs_and_entropies
from support import prefixes
from support.cli import RunConfig, UserError
from support.memory import (ALGORITHMS, DECODE, PHASES, PREFILL, UPDATE, Config, Plan,
                            Sizes)
from support.decoding import Decoder
from support.metrics import token_kl
from support.models import Reference, copy_for_inference, pick_device
from support.plan import fit
from support.pretrained import save_pretrained
from support.tokenizer import builtin_tokenizer

LLAMA = ModelConfig(300, 32, 3, 4, 2, 88, 64)
QWEN2 = ModelConfig(300, 48, 2, 6, 1, 60, 40, qkv_bias=True, tie_embeddings=False)
QWEN3 = ModelConfig(320, 32, 2, 4, 4, 48, 64, head_dim=16, qk_norm=True)
FAMILIES = pytest.mark.parametrize("sizes", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    """The two of --dtype, as pick_device sets them."""
    pick_device(RunConfig(device="cpu", dtype=request.param))
    yield request.param
    pick_device(RunConfig(device="cpu"))


def plan(sizes, algorithm, **settings):
    return Plan(Sizes(sizes), Config(**{"device": "cpu"} | settings), algorithm)


def storages(tensors) -> dict:
    """Of each memory once, its bytes, by its address."""
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


def size(tensors) -> int:
    return sum(storages(tensors).values())


def of_model(model) -> list:
    return [*model.parameters(), *model.buffers()]


def term(found, name) -> int:
    nbytes, _ = found.terms[name]
    return nbytes


@FAMILIES
def test_what_learns_is_exact(sizes, dtype):
    """Weights, gradients and Adam's averages are float32 in both."""
    policy = Transformer(sizes)
    found = plan(sizes, "ppo", dtype=dtype)
    of_rm = plan(sizes, "rm", dtype=dtype)
    for model, names, expected in (
            (policy, ("weights", "gradients", "Adam"), found),
            (ScalarModel(policy), ("critic", "critic's gradients", "critic's Adam"), found),
            (ScalarModel(policy), ("weights", "gradients", "Adam"), of_rm)):
        # The scalar head is not counted.
        parameters = [p for name, p in model.named_parameters() if name != "score.weight"]
        optimizer = torch.optim.AdamW(parameters, fused=True)
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        averages = [x for state in optimizer.state.values()
                    for x in (state["exp_avg"], state["exp_avg_sq"])]
        gradients = [p.grad for p in parameters]
        assert [term(expected, name) for name in names] == [
            size([*parameters, *model.buffers()]), size(gradients), size(averages)]


@FAMILIES
def test_what_is_frozen_is_exact(sizes, dtype):
    policy = Transformer(sizes)
    found = plan(sizes, "ppo", dtype=dtype)
    reference = Reference(policy, SimpleNamespace(ref_ema=0.0, ref_sync=0))
    assert term(found, "reference") == size(of_model(reference.model))
    scalar = copy_for_inference(ScalarModel(policy))
    assert term(found, "reward model") == size(of_model(scalar)) - 4 * sizes.dim
    decoder = Decoder(policy)
    copies = [part.weight.nbytes + (0 if part.bias is None else part.bias.nbytes)
              for layer in decoder.layers for part in vars(layer).values()
              if hasattr(part, "is_packed")]
    assert term(found, "copy to sample") == sum(copies) + decoder.lm_head.weight.nbytes


@FAMILIES
def test_the_cache_is_exact(sizes, dtype):
    policy = Transformer(sizes)
    prompts = torch.randint(0, 300, (7, 5))
    with torch.no_grad():
        cache, _ = rollout._prefill(policy, prompts, torch.full((7,), 5), 6, 15)
    found = plan(sizes, "grpo", dtype=dtype, rows=7, prompt_tokens=5, max_new_tokens=6)
    assert term(found, "KV cache") == cache.data.nbytes


@pytest.mark.parametrize("grad_checkpoint", [False, True])
@FAMILIES
def test_activations_are_exact(sizes, dtype, grad_checkpoint):
    """What autograd keeps of the layers, beside weights and cosines."""
    rows, prompt, answer = 3, 9, 8
    policy = Transformer(sizes)
    policy.grad_checkpoint = grad_checkpoint
    tokens = torch.randint(0, 300, (rows, prompt + answer - 1))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        policy.hidden(tokens)
    cosines = tokens.shape[1] * sizes.head_dim // 2
    others = storages([*of_model(policy), tokens])
    found = {address: nbytes for address, nbytes in storages(kept).items()
             if address not in others and nbytes != 4 * cosines}
    expected = plan(sizes, "sft", dtype=dtype, prompt_tokens=prompt, max_new_tokens=answer,
                    micro_batch_tokens=rows * (prompt + answer), grad_checkpoint=grad_checkpoint)
    assert term(expected, "activations") == sum(found.values())


def test_a_chunk_of_logits_follows_rollout(monkeypatch):
    settings = dict(prompt_tokens=4, max_new_tokens=8, micro_batch_tokens=48)
    whole = plan(LLAMA, "sft", **settings)
    assert whole.logits == 4 * 32 * 300 and not whole.has_chunks
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", 3100)
    part = plan(LLAMA, "sft", **settings)
    assert part.logits == 4 * 10 * 300 and part.has_chunks
    # On a GPU, for which the plan is if nothing else is said.
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE_GPU", 6100)
    assert Config().device == "cuda"
    assert plan(LLAMA, "sft", **settings, device="cuda").logits == 4 * 20 * 300


# ------------------------------------------------------------------------------ peaks of whole runs

MODEL = ModelConfig(1500, 64, 2, 4, 2, 172, 64)
PROMPT, ANSWER, ROWS = 18, 6, 16


def peak_of(function) -> int:
    """The most bytes of tensors that a call holds, by what torch's allocator notes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events()
              if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("grad_checkpoint", [False, True])
@pytest.mark.parametrize("rows_of_a_chunk", [3, 100])
def test_the_peak_of_an_update(dtype, rows_of_a_chunk, grad_checkpoint, tied, monkeypatch):
    """With a head as large as all else, in several chunks of logits and in one; gradients of a
    micro-batch before are there."""
    rows, prompt, answer = 4, 20, 10
    sizes = ModelConfig(4000, 128, 2, 4, 2, 172, 64, tie_embeddings=tied)
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", rows_of_a_chunk * sizes.vocab_size)
    policy = Transformer(sizes)
    policy.grad_checkpoint = grad_checkpoint
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)
    tokens = torch.randint(0, 4000, (rows, prompt + answer))
    mask = (torch.arange(prompt + answer) >= prompt).expand(tokens.shape)

    def update():
        logp, _ = token_log_probs_and_entropies(policy, tokens, mask)
        logp.sum().backward()
    found = plan(sizes, "grpo", dtype=dtype, prompt_tokens=prompt, max_new_tokens=answer, rows=rows,
                 micro_batch_tokens=rows * (prompt + answer), grad_checkpoint=grad_checkpoint)
    before = sum(nbytes for name, (nbytes, phases) in found.terms.items()
                 if phases == PHASES or name == "gradients")
    expected = max(map(found.phase, UPDATE)) - before
    assert math.isclose(expected, peak_of(update), rel_tol=0.05)


def test_the_peak_of_the_softmax(monkeypatch):
    """It decides where a chunk is larger than the head, and no entropies are asked for."""
    sizes = ModelConfig(4000, 16, 1, 4, 2, 16, 64)
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", 20 * 4000)
    policy = Transformer(sizes)
    tokens = torch.randint(0, 4000, (2, 30))
    mask = (torch.arange(30) >= 10).expand(tokens.shape)
    measured = peak_of(lambda: rollout.token_log_probs(policy, tokens, mask).sum().backward())
    found = plan(sizes, "sft", dtype="float32", prompt_tokens=10, max_new_tokens=20,
                 micro_batch_tokens=60)
    expected = term(found, "logits and head") + term(found, "activations")
    assert math.isclose(expected, measured, rel_tol=0.05)


@pytest.mark.parametrize("vocab_size", [300, 20000], ids=["prompts decide", "logits decide"])
def test_the_peak_of_sampling(dtype, vocab_size):
    rows, prompt, answer = 16, 40, 4
    sizes = ModelConfig(vocab_size, 64, 4, 4, 2, 512, 64)
    sampler = Decoder(Transformer(sizes))
    prompts = torch.randint(0, 300, (rows, prompt)).tolist()
    found = plan(sizes, "grpo", dtype=dtype, rows=rows, prompt_tokens=prompt, max_new_tokens=answer,
                 micro_batch_tokens=8 * prompt)
    expected = max(found.phase(PREFILL), found.phase(DECODE)) - sum(
        nbytes for name, (nbytes, phases) in found.terms.items()
        if phases == PHASES or name == "copy to sample")
    measured = peak_of(lambda: rollout.generate(sampler, prompts, answer, [],
                                                micro_batch_tokens=8 * prompt))
    # Numbers of a row or a token are left out.
    assert math.isclose(expected, measured, rel_tol=0.1)


def test_the_peak_of_scoring(dtype, monkeypatch):
    """It is the exact KL's, of two models."""
    sizes = ModelConfig(4000, 64, 2, 4, 2, 172, 64)
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", 50 * 4000)
    policy, reference = Transformer(sizes), copy_for_inference(Transformer(sizes))
    tokens = torch.randint(0, 4000, (4, 30))
    mask = (torch.arange(30) >= 10).expand(tokens.shape)
    found = plan(sizes, "grpo", dtype=dtype, prompt_tokens=10, max_new_tokens=20, rows=4)
    measured = peak_of(lambda: token_kl(policy, reference, tokens, mask))
    assert math.isclose(term(found, "a layer, then logits"), measured, rel_tol=0.1)


def test_a_micro_batch_is_of_whole_pairs_and_of_rows_that_there_are():
    settings = dict(prompt_tokens=4, max_new_tokens=6, rows=2, micro_batch_tokens=35)
    tokens = {algorithm: plan(LLAMA, algorithm, **settings).tokens for algorithm in ALGORITHMS}
    assert tokens == {"sft": 3 * 9, "rm": 2 * 10, "dpo": 2 * 9, "grpo": 2 * 9, "ppo": 2 * 9}
    # One row, or pair, goes through however long it is.
    settings["micro_batch_tokens"] = 1
    assert plan(LLAMA, "sft", **settings).tokens == 9
    assert plan(LLAMA, "dpo", **settings).tokens == 2 * 9


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model, a reward model, and data of which every row is full."""
    path = tmp_path_factory.mktemp("plan")
    tokenizer = builtin_tokenizer()
    torch.manual_seed(0)
    policy = Transformer(MODEL)
    save_pretrained(policy, tokenizer, path / "model")
    save_pretrained(ScalarModel(policy), tokenizer, path / "rm")
    lines = [{"prompt": f"{i:018}", "completion": "a" * 5, "chosen": "a" * 5,
              "rejected": "b" * 5} for i in range(60)]
    (path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (path / "reward.py").write_text("def score(prompts, completions, **columns):\n"
                                    "    return [i % 2 for i in range(len(prompts))]\n")
    return path


@pytest.mark.parametrize("grad_checkpoint", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_peak_of_a_run(inputs, tmp_path, monkeypatch, algorithm, grad_checkpoint):
    """Two steps of two micro-batches: float32 with chunks of logits, and bfloat16 with one chunk
    and --grad-checkpoint. The plan is that of rows which share nothing."""
    monkeypatch.setattr(prefixes, "LARGEST_SHARE", 0)
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", (100 if grad_checkpoint else 20) *
                        MODEL.vocab_size)
    dtype = "bfloat16" if grad_checkpoint else "float32"
    flags = ["--model", str(inputs / "model"), "--data", str(inputs / "data.jsonl"),
             "--out", str(tmp_path / "run"), "--steps", "2", "--save-every", "0",
             "--micro-batch-tokens", str(ROWS // 2 * (PROMPT + ANSWER)), "--dtype", dtype]
    if grad_checkpoint:
        flags.append("--grad-checkpoint")
    more = {"sft": ["--batch-size", "16"], "rm": ["--batch-size", "8"],
            "dpo": ["--batch-size", "8"], "ppo": ["--reward-model", str(inputs / "rm")],
            "grpo": ["--reward", f"{inputs / 'reward.py'}:score", "--group-size", "4"]}[algorithm]
    if algorithm in ("grpo", "ppo"):
        n_prompts = ROWS // 4 if algorithm == "grpo" else ROWS
        more += ["--max-new-tokens", str(ANSWER), "--minibatches", "1",
                 "--prompts-per-step", str(n_prompts)]
    if algorithm == "ppo":
        more += ["--critic-warmup", "0"]
    else:
        more += ["--eval-every", "0", "--eval-problems", "1"]
    script = importlib.import_module(f"train_{algorithm}")
    try:
        measured = peak_of(lambda: script.main([*flags, *more]))
    finally:
        pick_device(RunConfig(device="cpu"))
    expected = plan(MODEL, algorithm, prompt_tokens=PROMPT, max_new_tokens=ANSWER, rows=ROWS,
                    micro_batch_tokens=ROWS // 2 * (PROMPT + ANSWER), dtype=dtype,
                    grad_checkpoint=grad_checkpoint).peak()
    assert math.isclose(expected, measured, rel_tol=0.03), (expected, measured)


# --------------------------------------------------------------------------------- the command line

def write_config(path, **changes):
    save_pretrained(Transformer(QWEN3), builtin_tokenizer(), path)
    for file in path.iterdir():
        if file.name != "config.json":
            file.unlink()
    return path


def test_config_json_is_enough(tmp_path, capsys):
    path = write_config(tmp_path / "model")
    evaluate.main([str(path), "--plan", "--prompt-tokens", "8", "--max-new-tokens", "8",
                   "--rows", "4", "--dtype", "float32"])
    printed = capsys.readouterr().out
    expected = plan(QWEN3, "ppo", prompt_tokens=8, max_new_tokens=8, rows=4, dtype="float32")
    [peak] = [line for line in printed.splitlines() if line.startswith("peak")]
    assert peak.split()[-1] == f"{expected.peak() / 2 ** 20:,.0f}"


def test_a_run_is_planned_as_its_model(place, capsys):
    flags = ["--plan", "--prompt-tokens", "8", "--max-new-tokens", "8"]
    evaluate.main([str(place / "sft"), *flags])
    of_run = capsys.readouterr().out
    evaluate.main([str(place / "sft" / "model"), *flags])
    assert of_run == capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    (["--chat"], "unrecognized arguments: --chat"),
    (["--problems", "4"], "unrecognized arguments: --problems 4"),
    (["--rows", "0"], "--rows: 0 is out of range"),
    (["--dtype", "float16"], "float16"),
    (["--prompt-tokens", "60"], "--prompt-tokens 60 and --max-new-tokens 256: 316 tokens, "
                                "expected at most the model's context of 64"),
])
def test_flags_that_dont_go_together(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        evaluate.main([str(write_config(tmp_path / "model")), "--plan", *flags])


def test_a_wrong_model(tmp_path):
    with pytest.raises(UserError, match="nowhere/config.json: not found"):
        evaluate.main(["nowhere", "--plan"])
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="config.json: model_type is 'gpt2', expected llama"):
        evaluate.main([str(tmp_path), "--plan"])


def test_what_fits_is_the_first_that_does():
    """By the peak itself: the flags named fit, and those tried before don't."""
    sizes = Sizes(ModelConfig(50000, 512, 8, 8, 2, 1536, 4096))
    config = Config(max_new_tokens=512)

    def fits(algorithm, card, **flags):
        needed = Plan(sizes, replace(config, **flags), algorithm).peak()
        return 1.1 * needed + 1e9 <= card * 1e9
    for algorithm in ALGORITHMS:
        for card in range(2, 14):
            found = fit(sizes, config, algorithm, card)
            tried = [(rows, gc, tokens)
                     for rows in ((256, 64, 16) if algorithm in ("grpo", "ppo") else (256,))
                     for gc in (False, True) for tokens in (8192, 4096, 2048, 1024)]
            good = [fits(algorithm, card, rows=rows, grad_checkpoint=gc, micro_batch_tokens=tokens)
                    for rows, gc, tokens in tried]
            if not any(good):
                assert found == "no"
                continue
            rows, gc, tokens = tried[good.index(True)]
            fewer = "" if rows == 256 else f", {rows} rows"
            assert found == f"{tokens}{' gc' if gc else ''}{fewer}"




def test_the_page_is_what_the_code_gives():
    script = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "memory.py"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert page == script["page"](), "run `python docs/memory.py`"


def test_predictions_are_within_a_tenth_of_what_was_measured():
    script = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "memory.py"))
    compared, _ = script["comparison"]()
    assert {row["script"] for row in compared} >= {"sft", "grpo", "ppo", "dpo"}
    for row in compared:
        assert abs(row["predicted"] / row["tensors"] - 1) < 0.1, row
