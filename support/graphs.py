"""Decoding by CUDA graphs (--decode-graph): the model's pass for a token is one launch instead of
some hundreds.

The kernels of a small model's decode step take a few microseconds each, and launching one takes the
host as long. A graph is recorded once, then launched as a whole: the same kernels on the same
memory, whatever stands in it. So what changes from token to token has its fixed place on the
device: the tokens, their positions, the column of the cache that is filled. Attention goes over
all columns, and a mask hides those that are empty. Rows that have ended are computed along, until
half are left: of a batch of 256 there are graphs for 256, 128, 64, ... rows, made when needed.
"""
import functools
import math

import torch
import torch.nn.functional as F

from model import KVCache
from support.decoding import Decoder

# pick_device sets it, as it sets autocast.
use_graphs = False


def prepare_for_decoding(model) -> Decoder:
    """A copy of the model as it is now, for `generate`."""
    return GraphDecoder(model) if use_graphs else Decoder(model)


class GraphDecoder(Decoder):
    """A Decoder for one rollout. It records its graphs anew for the next, as its weights are."""

    def __init__(self, model):
        super().__init__(model)
        self.cache = None

    def hidden(self, tokens, cache: KVCache, positions=None):
        if cache.length == 0:
            return super().hidden(tokens, cache, positions)
        if cache is not self.cache:
            self._begin(cache)
        n = len(tokens)
        if n < self.n_rows:
            # cache.keep has moved the rows that are left to the front, in the same memory.
            self.n_rows = n
            self.bias[:n] = cache.bias
        self.tokens[:n] = tokens
        self.positions[:n] = positions
        self.column.fill_(cache.length)

        size = len(self.tokens)
        while size // 2 >= n:
            size //= 2
        if size not in self.graphs:
            self.graphs[size] = record(lambda: self._step(size))
        launch, h = self.graphs[size]
        launch()
        cache.length += 1
        return h[:n]

    def _begin(self, cache: KVCache) -> None:
        self.cache, self.data, self.bias = cache, cache.data, cache.bias.clone()
        # Hidden columns have a weight of 0, but 0 times the nan of unused memory is nan.
        self.data[..., cache.length:, :] = 0
        self.n_rows, device = len(cache.bias), cache.bias.device
        self.tokens = torch.zeros(self.n_rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.columns = torch.arange(self.bias.shape[-1], device=device)         # (S,)
        self.graphs = {}                    # number of rows: what launches it, its result

    def _step(self, size: int):
        """The next token of the first `size` rows. -> (size, 1, C)"""
        bias = self.bias[:size].masked_fill(self.columns > self.column, -math.inf)
        cache = WholeCache(self.data[:, :, :size], bias, self.column)
        return super().hidden(self.tokens[:size], cache, self.positions[:size])


class WholeCache:
    """A KVCache in one step: `column` (1,) is filled, bias (B, 1, 1, S) says which are in use."""
    length = 0

    def __init__(self, data, bias, column):
        self.data = data
        self.bias = bias
        self.column = column

    def attend(self, q, k, v, layer: int):
        """As KVCache.attend of one token per row."""
        keys, values = self.data[layer]                                         # (B, nkv, S, hs)
        keys.index_copy_(2, self.column, k)
        values.index_copy_(2, self.column, v)
        rows = q.unflatten(1, (k.shape[1], -1)).squeeze(3)                 # (B, nkv, nh/nkv, hs)
        y = F.scaled_dot_product_attention(rows, keys, values, attn_mask=self.bias)
        return y.reshape(q.shape)


@functools.cache
def side_stream():
    """One for all recordings: libraries keep memory for each stream that they have worked in."""
    return torch.cuda.Stream()


def record(step):
    """-> a function that launches all that step() launches, and step's result: the same tensor
    after each launch, with new numbers in it."""
    # Libraries make themselves ready in a first call, which can't be recorded.
    stream = side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = step()
    return graph.replay, result
