"""A running average of a network's weights along its training, which often scores higher than the last ones.

B. T. Polyak and A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim., 1992;
A. Tarvainen and H. Valpola, "Mean teachers are better role models", NeurIPS 2017, with the same decay.
"""

from __future__ import annotations

import copy

import torch

from emalab.segmenter import Segmenter

__all__ = ["WeightAverage"]


class WeightAverage:
    """The average of weights, running statistics and bases after each step: ā ← (1 − w) ā + w a.

    w = max(1 − decay, 1/n) after n steps: the plain mean of all steps at first, which forgets the initial weights, and
    an exponential moving average from step 1/(1 − decay) on. The caller counts the steps, so that only the network has
    to be saved. Integer tensors are copied from the last step.

    Args:
        model: the network that learns; its tensors are copied, on its device.
        decay: weight of the old average, 0 to below 1.

    Attributes:
        model: a network with the average, in evaluation mode. No gradient reaches it.
    """

    def __init__(self, model: Segmenter, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Include the weights after step number ``steps``, counted from 1."""
        ours, theirs = map(list, zip(*self._floating, strict=True))
        torch._foreach_lerp_(ours, theirs, max(1 - self.decay, 1 / steps))  # one launch for hundreds of tensors
        for mean, last in self._others:
            mean.copy_(last)
