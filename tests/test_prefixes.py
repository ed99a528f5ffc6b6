"""What rows have in common is computed once, and nothing that is computed changes."""
import copy

import pytest
import torch

from model import ModelConfig, ScalarModel, Transformer
from rollout import micro_batches, sequence_scores, token_log_probs, token_values
from support import prefixes
from support.prefixes import PrefixTransformer, PrefixTree
from test_decoding import FAMILIES, random_model

# The drawing in prefixes.py, its rows in another order and one of them twice.
A, B, C, D, E, F, G, H = range(8)
DRAWN = torch.tensor([[A, B, C, F, H], [A, B, C, D, E], [A, B, C, F, G], [A, B, C, D, E]])


@pytest.fixture(params=FAMILIES)
def model(request):
    return random_model(request.param, 32, PrefixTransformer)


@pytest.fixture
def group_batch():
    """Three groups of four answers, shuffled. Two answers of each group begin alike, rows end at
    different columns, and each has a hole: what an environment wrote."""
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 40, (12, 20), generator=rng)
    groups, t = tokens.view(3, 4, 20), torch.arange(20)
    groups[:, :, :9] = groups[:, :1, :9]
    groups[:, 2:, :13] = groups[:, 2:3, :13]
    end = torch.randint(15, 21, (12, 1), generator=rng)
    mask = (t >= 9) & (t < end)
    mask[:, 11:14] = False
    order = torch.randperm(12, generator=rng)
    return (tokens * (t < end))[order], mask[order]


def as_plain(model):
    """The same weights in the class that computes every row."""
    model = copy.deepcopy(model)
    model.__class__ = Transformer
    return model


def scored(model, tokens, mask):
    """Log-probs, and the gradients of a sum of them in which each has its own weight."""
    model.zero_grad()
    logp = token_log_probs(model, tokens, mask, 0.8)
    (logp * torch.linspace(-1, 2, logp.numel()).view(logp.shape)).sum().backward()
    return logp.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def tokens_computed(model, function) -> int:
    """How many tokens go through the first layer."""
    n = []
    hook = model.layers[0].register_forward_hook(lambda layer, inputs, x: n.append(
        x.shape[0] * x.shape[1]))
    function()
    hook.remove()
    return sum(n)


def test_the_tree_is_the_one_drawn():
    tree = PrefixTree(DRAWN)
    assert tree.tokens.tolist() == [[A, B, C, D, F, E, G, H]]
    assert tree.positions.tolist() == [[0, 1, 2, 3, 3, 4, 4, 4]]
    assert torch.equal(tree.tokens[0][tree.number[tree.row_of]], DRAWN)


def test_equal_tokens_behind_a_difference_are_not_shared():
    """Their states differ, as the model reads what stands before."""
    tree = PrefixTree(torch.tensor([[A, B, C, D], [A, E, C, D]]))
    assert tree.tokens.tolist() == [[A, B, E, C, C, D, D]]
    assert tree.number.tolist() == [[0, 1, 3, 5], [0, 2, 4, 6]]


@pytest.mark.parametrize("dtype, precision", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("grad_checkpoint", [False, True])
def test_log_probs_and_gradients_are_the_plain_ones(model, group_batch, dtype, precision,
                                                    grad_checkpoint):
    model, (tokens, mask) = model.to(dtype), group_batch
    model.grad_checkpoint = grad_checkpoint
    logp, gradient = scored(model, tokens, mask)
    exact_logp, exact_gradient = scored(as_plain(model), tokens, mask)
    assert (logp - exact_logp).abs().max() < precision
    assert (gradient - exact_gradient).norm() < precision * exact_gradient.norm()


def test_what_is_shared_is_computed_once(model, group_batch):
    """A token is as good as another where all up to it is the same."""
    tokens, mask = group_batch
    beginnings = {tuple(row[:t + 1]) for row in tokens[:, :-1].tolist() for t in range(19)}
    assert len(beginnings) < 0.75 * 12 * 19
    found = tokens_computed(model, lambda: token_log_probs(model, tokens, mask))
    assert found == len(beginnings)
    # In micro-batches, which part groups, as well.
    parts = micro_batches(mask, 90)
    whole = token_log_probs(model, tokens, mask).detach()
    for rows, T in parts:
        part = token_log_probs(model, tokens[rows, :T], mask[rows, :T]).detach()
        assert (part - whole[rows, :T]).abs().max() < 1e-5
    assert len(parts) > 2


def test_rows_that_share_little_go_the_plain_way(model):
    """Bit for bit: PPO has one answer to each prompt."""
    tokens = torch.randint(0, 40, (12, 20))
    mask = (torch.arange(20) > 8).expand(12, 20)
    assert tokens_computed(model, lambda: token_log_probs(model, tokens, mask)) == 12 * 19
    for x, plain in zip(scored(model, tokens, mask), scored(as_plain(model), tokens, mask)):
        assert torch.equal(x, plain)
    # A single row, and too many tokens.
    assert tokens_computed(model, lambda: model(tokens[:1])) == 20
    with pytest.raises(ValueError, match="33 tokens exceed the model's context of 32"):
        model(torch.zeros(2, 33, dtype=torch.long))


def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_plain_way(model, group_batch):
    tokens, mask = group_batch
    truth = scored(as_plain(model).double(), tokens, mask)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        found, plain = scored(model, tokens, mask), scored(as_plain(model), tokens, mask)
    for x, plain_x, true_x in zip(found, plain, truth):
        assert (x - true_x).norm() < 1.05 * (plain_x - true_x).norm()


def test_reward_models_and_critics_share_too(model, group_batch):
    tokens, mask = group_batch
    scorer = ScalarModel(model)
    torch.nn.init.normal_(scorer.score.weight)
    plain = copy.deepcopy(scorer)
    plain.trunk.__class__ = Transformer
    for function in (sequence_scores, token_values):
        torch.testing.assert_close(function(scorer, tokens, mask), function(plain, tokens, mask))
    assert tokens_computed(scorer.trunk, lambda: scorer(tokens)) < 0.75 * tokens.numel()


def test_what_the_backward_pass_needs_is_less_at_the_largest_share(group_batch):
    """Copies of whole rows included."""
    model = PrefixTransformer(ModelConfig(vocab_size=40, dim=32, n_layers=3, n_heads=4,
                                          n_kv_heads=4, ffn_dim=64, max_seq_len=32))
    # 12 rows of 20, four fifths of them different.
    tokens = torch.randint(0, 40, (12, 20), generator=torch.Generator().manual_seed(0))
    tokens[:, :4] = tokens[0, :4]

    def saved(model):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x: sizes.setdefault(x.untyped_storage().data_ptr(), x) is None or x,
                lambda x: x):
            model.hidden(tokens)
        return sum(x.untyped_storage().nbytes() for x in sizes.values())
    share = tokens_computed(model, lambda: model.hidden(tokens)) / tokens.numel()
    assert 0.8 < share <= prefixes.LARGEST_SHARE < 0.9
    assert saved(model) < saved(as_plain(model))


def test_on_a_gpu_small_models_go_the_plain_way(model, group_batch):
    """Where the copies would take longer than the products that they save."""
    class OnGPU:
        device, shape = torch.device("cuda"), (64, 1024)

        def numel(self):
            return 64 * 1024
    assert model.may_pay(group_batch[0]) and not model.may_pay(OnGPU())
    model.config.max_seq_len = 1024
    assert not model.may_pay(OnGPU())
    model.layers[0].mlp.up_proj = torch.nn.Linear(512, 512)
    assert model.may_pay(OnGPU())
