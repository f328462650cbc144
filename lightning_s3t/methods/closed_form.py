"""A closed-form head on the pretrained network: nothing is trained, and requests subtract."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_s3t.core.floor import Task
from lightning_s3t.methods.method import HeadMethod
from lightning_s3t.methods.registry import register_method
from lightning_s3t.tuning.floor import Floor, Targets


@register_method
@dataclass(frozen=True)
class ClosedForm(HeadMethod):
    """Serves a linear head in closed form on the pretrained network's features, and trains nothing else.

    The head is a ridge regression on the inputs of the network's own head, the same as the floor of `S3T(floor=...)`.
    A fit sends each row through the network once. A request subtracts the subject's rows from the sums that the head is
    solved from, and takes effect at once. The sums are integers, so what serves afterwards is bitwise equal to the
    result of a first fit without the subject, in any order of requests, until nobody is left.

    Nothing but the head learns from the data: it is only as good as the pretrained features.

    Args:
        targets: The place of the targets in a batch, as for `Floor`.
        task: "multiclass", "multilabel", "binary" or "regression", as for `Floor`.
        bits: Number of bits that a feature is rounded to, 4 to 8.
        target_step: Targets of a regression are rounded to multiples of it.
        layers: Number of layer groups whose outputs are features too, as for `Floor`; the network is cut into as many.
        width: The number of features with `layers`.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> ClosedForm().guarantee, ClosedForm().response, ClosedForm().needs
        ('exact', 'subtract', ())
        >>> ClosedForm(bits=9)
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Expected argument `bits` to be an integer from 4 to 8 but got 9.
    """

    name = "closed_form"
    guarantee = "exact"

    targets: Targets | None = None
    task: Task | None = None
    bits: int = 8
    target_step: float = 1e-3
    layers: int = 0
    width: int = 1024

    @property
    def head(self) -> Floor:
        """The head that serves."""
        return Floor(self.targets, self.task, self.bits, self.target_step, layers=self.layers, width=self.width)
