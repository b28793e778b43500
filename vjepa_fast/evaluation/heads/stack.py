"""Probe heads of one form as one module with stacked weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vjepa_fast.evaluation.heads.layers import (
    CrossAttention,
    Weights,
    layer,
    linear,
    normalize,
    self_attention,
)
from vjepa_fast.evaluation.heads.spec import HeadSpec, ProbeForm, make_head

_PART = 2**26  # values of the tokens of all heads that run together behind self-attention


class HeadStack(nn.Module):
    """H heads over the same tokens; head i computes what `single(i)` computes.

    Heads of a target, draw and seed start equal, so a grid over learning rates compares these only.
    Each parameter is an `AttentiveClassifier`'s with a leading dimension H. The last linear layer
    has the outputs of the head with the most; those which a head lacks stay 0 and are cut off.

    Args:
        form: the architecture.
        specs: the heads.
        seed: head i has the initial weights of `make_head(form, outputs, seed + draw)`.

    Raises:
        ValueError: no specs, or heads of one target with different numbers of outputs.
    """

    def __init__(self, form: ProbeForm, specs: Sequence[HeadSpec], seed: int) -> None:
        super().__init__()
        self.form, self.specs = form, tuple(specs)
        self.outputs = {spec.target: spec.outputs for spec in self.specs}
        if not self.specs or any(s.outputs != self.outputs[s.target] for s in self.specs):
            raise ValueError(
                f"specs: found {[(s.target, s.outputs) for s in self.specs]}, expected heads, "
                "those of one target with the same outputs; give each form of a target a name"
            )
        starts = {
            (outputs, draw): make_head(form, outputs, seed + draw).state_dict()
            for outputs, draw in {(s.outputs, s.draw) for s in self.specs}
        }
        most = max(self.outputs.values())
        self.stacked = make_head(form, most, seed)
        for name, p in self.stacked.named_parameters():
            own = [starts[s.outputs, s.draw][name] for s in self.specs]
            if name.startswith("linear."):
                own = [torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) for x in own]
            p.data = torch.stack(own)

    def prepare(self, tokens: Tensor) -> Tensor:
        """What all heads share, from tokens [B, N, D] of any float dtype; no gradient flows back.

        It may be computed once for features that are read often.

        Returns:
            fp32; the normalized tokens for one attentive block, the tokens for several; their mean
            [B, 1, D] for a linear head.
        """
        tokens = tokens.detach().float()
        if self.form.kind == "linear":
            return tokens.mean(1, keepdim=True)
        return normalize(tokens, self.form.norm_eps) if self.form.blocks == 1 else tokens

    def parts(self, tokens: Tensor, pairs: Tensor) -> Iterator[slice]:
        """Heads to be computed together: all, unless they would need too much memory."""
        heads, step = len(self.specs), len(self.specs)
        if self.form.kind == "attentive" and self.form.blocks > 1:
            step = max(1, _PART // (pairs.shape[1] * tokens[0].numel()))
        return (slice(first, min(first + step, heads)) for first in range(0, heads, step))

    def logits(self, weights: Weights, prepared: Tensor, pairs: Tensor) -> Tensor:
        """Outputs of h heads for the clips of each.

        Args:
            weights: of these heads, by name, each with a leading dimension h.
            prepared: from `prepare`.
            pairs: indices of P clips for each head, int64 [h, P].

        Returns:
            fp32 [h, P, largest number of outputs].
        """
        if self.form.kind == "linear":
            return linear(prepared[:, 0][pairs], layer(weights, "linear"))
        heads, eps = self.form.heads, self.form.norm_eps
        pooler = layer(weights, "pooler")
        attend = CrossAttention(pooler, heads, eps)
        if self.form.blocks == 1:
            pooled = attend.of_shared(prepared, pairs)
        else:
            own = prepared[pairs]
            for i in range(self.form.blocks - 1):
                own = self_attention(own, layer(pooler, f"blocks.{i}"), heads, eps)
            pooled = attend.of_own(normalize(own, eps))
        return linear(pooled, layer(weights, "linear"))

    def weights(self) -> dict[str, Tensor]:
        """The stacked parameters by a lone head's names."""
        return dict(self.stacked.named_parameters())

    def heads_of(self, target: str) -> list[int]:
        """Indices of the heads of a target, in their order in the specs."""
        return [i for i, spec in enumerate(self.specs) if spec.target == target]

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Outputs of all heads for all clips.

        Args:
            tokens: [B, N, D], any float dtype; computed in fp32.

        Returns:
            fp32 [heads of the target, B, outputs] by target, heads in their order in the specs.
        """
        pairs = torch.arange(len(tokens), device=tokens.device).expand(len(self.specs), -1)
        prepared, weights = self.prepare(tokens), self.weights()
        logits = torch.cat(
            [
                self.logits({name: w[part] for name, w in weights.items()}, prepared, pairs[part])
                for part in self.parts(prepared, pairs)
            ]
        )
        return {
            target: logits[self.heads_of(target), :, :outputs]
            for target, outputs in self.outputs.items()
        }

    @torch.no_grad()
    def single(self, index: int) -> nn.Module:
        """A copy of one head: an `AttentiveClassifier` or a `LinearClassifier`, on its device."""
        outputs = self.specs[index].outputs
        head = make_head(self.form, outputs, seed=0)
        own = {name: w[index] for name, w in self.weights().items()}
        for name in ("linear.weight", "linear.bias"):
            own[name] = own[name][:outputs]
        head.load_state_dict(own)
        return head.to(self.stacked.linear.weight.device)
