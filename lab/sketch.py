"""The gradient of every row of a batch, of all parameters, in one backward pass, projected.

A batch's gradient is a sum over rows. To re-weight the rows, one needs each of them: 0.8 M numbers
a row here, too many to keep for thousands of rows.
"""
import torch
import torch.nn.functional as F
from torch import nn

from losses import gather_log_probs
from model import RMSNorm


class Sketch:
    """The gradient of each row of a batch, of all parameters, projected to p * q numbers.

    A weight's gradient is Σ_t δ_t x_tᵀ, of the error δ at its output and its input x. Its sketch is
    R (Σ_t δ_t x_tᵀ) Sᵀ = Σ_t (R δ_t)(S x_t)ᵀ with random projections R (p, out) and S (q, in):
    never larger than p by q, and <sketch, sketch'> is <gradient, gradient'> on average. All
    weights' sketches are added up. It is linear, and the same for all estimators."""

    def __init__(self, policy, p: int = 64, q: int = 64, seed: int = 0):
        self.shape = p, q
        self.policy = policy
        self.rng = torch.Generator().manual_seed(seed)
        self.sides = {}
        self.total = None
        self.modules = [module for module in policy.modules()
                        if isinstance(module, (nn.Linear, nn.Embedding, RMSNorm))]
        for module in self.modules:
            self._add_weight(module.weight)
        for name, parameter in policy.named_parameters():
            if parameter not in self.sides:
                raise ValueError(f"{name}: a parameter that is no weight of a linear layer, an "
                                 "embedding or a norm")

    def _projection(self, rows: int, columns: int, weight):
        """From `columns` dimensions to a random subspace; with rows >= columns, all of them."""
        noise = torch.randn(max(rows, columns), min(rows, columns), generator=self.rng)
        basis = torch.linalg.qr(noise)[0]
        if rows < columns:
            basis = basis.T * (columns / rows) ** 0.5
        return basis.to(weight.dtype)

    def _add_weight(self, weight) -> None:
        # A weight that two modules share, as embedding and head do, has one projection.
        if weight in self.sides:
            return
        p, q = self.shape
        if weight.dim() == 1:
            self.sides[weight] = self._projection(p * q, len(weight), weight), None
        else:
            out, into = weight.shape
            self.sides[weight] = self._projection(p, out, weight), self._projection(q, into, weight)

    def _watch(self, module, inputs, output):
        R, S = self.sides[module.weight]
        x = inputs[0].detach()
        if isinstance(module, nn.Embedding):
            output.requires_grad_()             # the parameters themselves need no gradient
            Rx = R.T[x]                                                         # (B, T, p)

            def add(error):
                self.total += torch.einsum("btp,btq->bpq", Rx, error @ S.T)
        elif isinstance(module, RMSNorm):
            x = F.rms_norm(x, module.weight.shape, None, module.eps)

            def add(error):
                each = (error * x).flatten(1, -2).sum(1)                        # (B, dim)
                self.total += (each @ R.T).view(-1, *self.shape)
        else:
            Sx = x @ S.T                                                        # (B, T, q)

            def add(error):
                self.total += torch.einsum("btp,btq->bpq", error @ R.T, Sx)
        output.register_hook(add)

    def scores(self, tokens, mask, weights: list) -> list:
        """Σ_t w_t ∇log π(token t) of each row, projected; for each w (B, T) a tensor (B, pq)."""
        handles = [module.register_forward_hook(self._watch) for module in self.modules]
        logp = gather_log_probs(self.policy(tokens[:, :-1]), tokens[:, 1:])     # (B, T - 1)
        for handle in handles:
            handle.remove()
        found = []
        for w in weights:
            self.total = logp.new_zeros(len(tokens), *self.shape)
            weighted = (logp * (w * mask)[:, 1:]).sum()
            weighted.backward(retain_graph=True)
            found.append(self.total.flatten(1))
        return found

    def of_gradients(self) -> torch.Tensor:
        """The same projection of what the parameters hold as .grad. (pq,)"""
        total = 0
        for weight, (R, S) in self.sides.items():
            if S is None:
                total = total + (R @ weight.grad).view(self.shape)
            else:
                total = total + R @ weight.grad @ S.T
        return total.flatten()
