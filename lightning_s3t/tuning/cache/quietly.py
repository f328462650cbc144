"""Running a network beside its training: without gradients, in eval mode, and without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_s3t.tuning.randomness import seeded


@contextmanager
def quietly(network: nn.Module) -> Iterator[None]:
    """Lets a network be run while the block runs; afterwards everything is as if it had not been.

    Args:
        network: The network; its modules are in eval mode meanwhile.

    Example:
        >>> net = nn.Dropout()
        >>> with quietly(net):
        ...     net.training, torch.is_grad_enabled()
        (False, False)
        >>> net.training, torch.is_grad_enabled()
        (True, True)
    """
    training = [module for module in network.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    for module in training:
        module.training = False  # train() may be the user's own, and do more
    try:
        # a validation runs in inference mode, and what is made there can take no part in a later step
        with seeded(0), torch.inference_mode(False), torch.no_grad():
            # torch's encoder layers would run in one fused call without gradients, which rounds otherwise
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True
