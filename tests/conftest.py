import json
import os
import shutil

# Before torch looks for GPUs: models, batches and bits of these tests are the CPU's. With
# GPU_TESTS=1 those of test_gpu.py have the GPU.
if "GPU_TESTS" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402
import torch  # noqa: E402

from model import ModelConfig, Transformer  # noqa: E402
from support import plot  # noqa: E402
from support.plot import read_metrics  # noqa: E402
from support.tokenizer import builtin_tokenizer  # noqa: E402
from tiny_task import MEASURED, write_tiny_task  # noqa: E402

# With tensors this small, two threads mostly wait for each other.
torch.set_num_threads(1)

DRAW = plot.draw_curves


def no_plot(run, algorithm):
    """In place of draw_curves: to draw takes longer than all else that a tiny run does."""
    (run / "curves.png").touch()


plot.draw_curves = no_plot

# ChatML, as Qwen's and SmolLM's; <|endoftext|> ends a turn.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<|endoftext|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}")


def result(run) -> dict:
    """What must be equal in equal runs: the files' names, metrics without what was measured,
    samples, the model's bytes."""
    def text(name):
        return (run / name).read_text() if (run / name).exists() else ""
    return {"names": sorted(p.name for p in run.iterdir()),
            "metrics": [{k: v for k, v in row.items() if k not in MEASURED}
                        for row in read_metrics(run)],
            "samples": text("samples.txt"),
            "pairs": text("pairs.jsonl"),
            "model": (run / "model" / "model.safetensors").read_bytes()}


SHORT_TEMPLATE = (
    "{% for m in messages %}{{ m.role[:1] + '>' + m.content + '<|endoftext|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a>' }}{% endif %}")
ENVIRONMENT = '''
import os, signal
from pathlib import Path

def echo(conversations, good, **columns):
    """What was said backwards, and how often it was asked; or nothing more."""
    assert len(conversations) == len(good)
    replies = []
    for messages in conversations:
        said = messages[-1]["content"]
        n = sum(message["role"] == "assistant" for message in messages)
        reply = [{"role": "tool", "content": said[::-1][:3]}, {"role": "user", "content": str(n)}]
        replies.append(reply if len(said) % 3 else None)
        messages.clear()
    return replies

def always(conversations, **columns):
    return [[{"role": "tool", "content": "x"}] for _ in conversations]

def killed(conversations, **columns):
    """Kills its process in the middle of a call, once."""
    with open("calls.txt", "a") as f:
        f.write("x")
    if Path("calls.txt").stat().st_size == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return echo(conversations, **columns)

def score(prompts, completions, finished, **columns):
    for prompt, completion in zip(prompts, completions):
        roles = [message["role"] for message in completion]
        assert prompt[0]["role"] == "user" and roles[0] == "assistant"
        assert "<|endoftext|>" not in str(completion)
    return [sum(message["content"].count("a") for message in completion
                if message["role"] == "assistant") / 6 for completion in completions]
'''


def write_chats(place, path) -> None:
    """The tiny model with a chat template, which says a, b, c; prompts of messages; environments
    and a reward."""
    shutil.copytree(place / "sft" / "model", path / "chat")
    (path / "chat" / "chat_template.jinja").write_text(SHORT_TEMPLATE)
    rows = [{"prompt": [{"role": "user", "content": f"{i}:"}], "good": str(i)} for i in range(40)]
    (path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "world.py").write_text(ENVIRONMENT)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A directory with the tiny task in it."""
    path = tmp_path_factory.mktemp("runs")
    write_tiny_task(path)
    return path


@pytest.fixture
def tokenizer():
    return builtin_tokenizer()


@pytest.fixture
def model():
    """A small random model in float64 with grouped heads; weights large enough that its
    distributions are far from uniform."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=11, dim=16, n_layers=2, n_heads=4, n_kv_heads=2,
                                    ffn_dim=24, max_seq_len=32)).double()
    for p in model.parameters():
        if p.dim() == 2:
            p.data.normal_(std=0.5)
    return model


@pytest.fixture
def batch():
    """Tokens and mask (4, 10): prompts of different lengths, answers of different lengths, a hole
    in row 2."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 11, (4, 10), generator=generator)
    prompt, end, t = torch.tensor([2, 3, 1, 4]), torch.tensor([10, 5, 9, 8]), torch.arange(10)
    mask = (t >= prompt[:, None]) & (t < end[:, None])
    mask[2, 4:6] = False
    return tokens, mask
