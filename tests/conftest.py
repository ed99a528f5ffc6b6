import pytest
import torch

from model import ModelConfig, Transformer
from tokenizer import builtin_tokenizer

torch.set_num_threads(2)


@pytest.fixture
def tokenizer():
    return builtin_tokenizer()


@pytest.fixture
def model():
    """A small random model in float64 with grouped heads; weights large enough that its distributions are far from uniform."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=11, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=24, max_seq_len=32)).double()
    for p in model.parameters():
        if p.dim() == 2:
            p.data.normal_(std=0.5)
    return model


@pytest.fixture
def batch():
    """Tokens and mask (4, 10): prompts of different lengths, answers of different lengths, a hole in row 2."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 11, (4, 10), generator=generator)
    prompt, end, t = torch.tensor([2, 3, 1, 4]), torch.tensor([10, 5, 9, 8]), torch.arange(10)
    mask = (t >= prompt[:, None]) & (t < end[:, None])
    mask[2, 4:6] = False
    return tokens, mask
