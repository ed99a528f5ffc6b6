"""Rows that begin with the same tokens: what they share is computed once, with its gradient.

A causal model's state at a token is a function of the tokens up to it. The answers of a group all
have their prompt in common, and often the first words of the answer: together they are a tree of
tokens. Here a dot is a token that the row above has already:

    row 0         a  b  c  d  e             tokens         a b c d f e g h
    row 1         .  .  .  f  g             positions      0 1 2 3 3 4 4 4
    row 2         .  .  .  .  h

What works token by token, which is nearly all, goes through the tree's tokens; attention goes
through whole rows. Prefix Grouper (arXiv:2506.05433) does so for prompts.
"""
import torch
import torch.nn.functional as F

from model import KVCache, Transformer, attend

# Whole rows of queries, keys and values are copies, in memory and in time. Up to this share of the
# tokens the rest saves more of both (1.06 times on a CPU at 0.86, 1.15 times at 0.8).
LARGEST_SHARE = 0.85
# On a GPU, copies cost time where the products of a layer, so many multiplications, do not.
PRODUCTS_GPU = 2 ** 33


class PrefixTree:
    """The different beginnings of the rows of tokens (B, T), N of them, each by its last token.

    For one call of Transformer.hidden it takes the place of a KVCache."""
    length = 0

    def __init__(self, tokens):
        # In the order of their tokens: rows that begin alike stand together.
        rows, self.row_of = tokens.unique(dim=0, return_inverse=True)           # (U, T), (B,)
        U, T = rows.shape
        is_new = torch.ones(T, U, dtype=torch.bool, device=tokens.device)
        is_new[:, 1:] = (rows[1:] != rows[:-1]).cumsum(1).T > 0
        # Tokens are numbered column by column, so that an old one has the number before it.
        number = is_new.flatten().cumsum(0) - 1
        self.number = number.view(T, U).T                                       # (U, T)
        position, row = is_new.nonzero(as_tuple=True)                           # (N,)
        self.tokens = rows[row, position][None]                                 # (1, N)
        self.positions = position[None]
        self.first = row * T + position                 # (N,) where it stands among the U * T

    def attend(self, q, k, v, layer):
        """q (1, nh, N, hs), k and v (1, nkv, N, hs) -> (1, nh, N, hs)"""
        y = attend(*(self.rows_of(x) for x in (q, k, v)))                       # (U, nh, T, hs)
        y = y.transpose(1, 2).flatten(2).flatten(0, 1)                          # (U * T, nh * hs)
        y = F.embedding(self.first[None], y)                                    # (1, N, nh * hs)
        return y.view(q.transpose(1, 2).shape).transpose(1, 2)

    def rows_of(self, x):
        """(1, n, N, hs) -> (U, n, T, hs)"""
        _, n, _, hs = x.shape
        x = x.transpose(1, 2).reshape(-1, n * hs)                               # (N, n * hs)
        # As of a table of embeddings, since gradients of equal rows are added up in a fixed order.
        return F.embedding(self.number, x).unflatten(2, (n, hs)).transpose(1, 2)


class PrefixTransformer(Transformer):
    """A Transformer that computes what rows have in common once, where that pays."""

    def hidden(self, tokens, cache: KVCache | None = None, positions=None):
        """As Transformer.hidden."""
        if cache is None and self.may_pay(tokens):
            tree = PrefixTree(tokens)
            if tree.tokens.numel() <= LARGEST_SHARE * tokens.numel():
                x = super().hidden(tree.tokens, tree, tree.positions)           # (1, N, C)
                return F.embedding(tree.number[tree.row_of], x[0])              # (B, T, C)
        return super().hidden(tokens, cache, positions)

    def may_pay(self, tokens) -> bool:
        """As far as shapes say it. For all else the host has to wait for a GPU."""
        B, T = tokens.shape
        # Too many tokens are refused.
        if B == 1 or T > self.config.max_seq_len:
            return False
        products = tokens.numel() * sum(p.numel() for p in self.layers[0].parameters())
        return tokens.device.type == "cpu" or products >= PRODUCTS_GPU
