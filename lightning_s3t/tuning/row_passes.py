"""Running a network one row at a time, so that the output for a row depends only on that row.

In a batch, the last bits of a row's output depend on the number of other rows: kernels choose the order of their sums
by the size of their input. Values derived from such an output could reveal forgotten people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.tuning.nested import TensorPath, has_plain_leaves, leaves_in, replace_tensors, tensors_in
from lightning_s3t.tuning.randomness import seed_running, seeded


def run_by_row(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    forward: Callable[..., Any] | None = None,
) -> Any:
    """Run a network once for each row of a batch, and put the answers together.

    Args:
        network: The network; it runs in eval mode.
        args: The positional arguments of a whole batch: every tensor in them has the rows in its first dimension.
        kwargs: The arguments by name, in the same form.
        forward: The function to call for a row, such as `network.forward_features`; None for the network itself.

    Returns:
        The output of a call for the whole batch, without gradients.

    Raises:
        ConfigurationError: There are no rows, or an argument or an output cannot be split into rows.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
        >>> x = torch.randn(5, 4)
        >>> whole = run_by_row(net, (x,))
        >>> torch.equal(whole[2:3], run_by_row(net, (x[2:3],)))
        True
    """
    call, given = forward if forward is not None else network, (args, dict(kwargs or {}))
    answers = []
    with _quietly(network):
        for row in range(_count_rows(given)):
            seed_running(0)  # the same for each: random draws must not depend on earlier rows
            row_args, row_kwargs = _take(given, row)
            answer = call(*row_args, **row_kwargs)
            answers.append(replace_tensors(answer, lambda _, tensor: _copy(tensor)))
        return _join(answers)


def _count_rows(given: Any) -> int:
    counts = {len(tensor) if tensor.dim() else 0 for _, tensor in tensors_in(given)}
    if len(counts) != 1 or 0 in counts:
        shapes = [tuple(tensor.shape) for _, tensor in tensors_in(given)]
        raise ConfigurationError(
            f"Expected tensors with the same number of rows, one or more, in their first dimension, but got {shapes}. "
            "Give what has no rows by way of `forward`."
        )
    return counts.pop()


def _take(given: Any, row: int) -> Any:
    return replace_tensors(given, lambda _, tensor: _copy(tensor[row : row + 1]))


def _copy(tensor: Tensor) -> Tensor:
    # a row's position in its batch must not matter: kernels take other paths for memory with a different alignment; and
    # a view of an output would keep the whole output alive
    return tensor.clone(memory_format=torch.contiguous_format)


def _join(answers: list[Any]) -> Any:
    kinds = [{path: _kind(leaf) for path, leaf in leaves_in(answer)} for answer in answers]
    parts: list[dict[TensorPath, Tensor]] = [dict(tensors_in(answer)) for answer in answers]
    has_rows = all(tensor.shape[:1] == (1,) for tensor in parts[0].values())
    if not has_rows or not all(map(has_plain_leaves, answers)) or any(kind != kinds[0] for kind in kinds):
        raise ConfigurationError(
            "Expected answers of the same kind for every row: tensors with one row in their first dimension, of the "
            "same shape, in tuples, lists and dicts. Pad texts to a fixed length; leave out caches (use_cache=False)."
        )
    return replace_tensors(answers[0], lambda path, _: torch.cat([part[path] for part in parts]))


def _kind(leaf: Any) -> Any:
    return (leaf.dtype, leaf.shape) if isinstance(leaf, Tensor) else leaf


@contextmanager
def _quietly(network: nn.Module) -> Iterator[None]:
    """Let a network be run in eval mode; afterwards everything is as if it had not been."""
    training = [module for module in network.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for module in training:
            module.training = False  # train() may be the user's own, and do more
        # tensors created in inference mode cannot be used in a later training step
        with seeded(), torch.inference_mode(False), torch.no_grad():
            # torch's encoder layers would run as one fused call, which drops the last tokens of a padded row
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.clear_autocast_cache()  # older releases of torch keep weights that were cast without gradients
        for module in training:
            module.training = True
