"""A certified linear head on the pretrained network: logistic regression, published with secret noise."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_s3t.core.floor import CertifiedPart, Task
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods.checks import check_positive
from lightning_s3t.methods.method import HeadMethod
from lightning_s3t.methods.registry import register_method
from lightning_s3t.tuning.floor import Floor, Targets


@register_method
@dataclass(frozen=True)
class CertifiedHead(HeadMethod):
    """Serves a logistic regression on the pretrained network's features, with an (epsilon, delta) certificate.

    A fit sends each row through the network once, and minimises the regression's loss with an l2 penalty, for each
    output against the rest. A request removes the subject's rows and takes a Newton step on all others (Guo et al.,
    arXiv 1911.03030), at once. The gradient that is left bounds the distance from the minimum; if that is more than the
    noise hides, further steps follow. Then the head is published with fresh noise, which no seed leads to.

    A certificate is weaker than `ClosedForm`'s exact equality. It says that the head which serves is nearly as likely
    under a first fit without the subject: for any set of outcomes, the probabilities differ by a factor of at most
    e^epsilon, plus delta. This holds for whoever sees one head; someone who sees k heads, of k requests, has to
    multiply epsilon and delta by k. The receipt says what else it does not cover.

    Args:
        epsilon: Of the certificate.
        delta: Likewise; smaller than one over the number of subjects.
        l2: The penalty on half the squared weights, per row. With more, fewer steps are needed.
        noise: Standard deviation of the noise on each weight, for features whose norm is about 1 and at most 4. With
            less, more steps are needed.
        targets: The place of the targets in a batch, as for `Floor`.
        task: "multiclass", "multilabel" or "binary", as for `Floor`.
        bits: Number of bits that a feature is rounded to, 4 to 8.
        layers: Number of layer groups whose outputs are features too, as for `Floor`; the network is cut into as many.
        width: The number of features with `layers`. A request takes time that grows with its square.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> CertifiedHead(epsilon=0.5).guarantee, CertifiedHead().response
        ('certified', 'subtract')
        >>> CertifiedHead(task="regression")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: A certified head predicts classes. Expected argument `task` to be ...
    """

    name = "certified_head"
    guarantee = "certified"

    epsilon: float = 1.0
    delta: float = 1e-5
    l2: float = 1e-3
    noise: float = 1e-3
    targets: Targets | None = None
    task: Task | None = None
    bits: int = 8
    layers: int = 0
    width: int = 1024

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta", "l2", "noise"):
            check_positive(name, getattr(self, name))
            if getattr(self, name) == float("inf"):
                raise ConfigurationError(f"Expected argument `{name}` to be a finite number.")
        if self.delta >= 1:
            raise ConfigurationError(f"Expected argument `delta` to be less than 1 but got {self.delta!r}.")
        if self.task == "regression":
            raise ConfigurationError(
                "A certified head predicts classes. Expected argument `task` to be 'multiclass', 'multilabel' or "
                "'binary'; for numbers use ClosedForm, which is exact."
            )
        super().__post_init__()

    @property
    def head(self) -> Floor:
        """Which features and targets it learns from."""
        return Floor(self.targets, self.task, self.bits, layers=self.layers, width=self.width)

    @property
    def certified(self) -> CertifiedPart:
        """The settings of the certificate."""
        return CertifiedPart(
            epsilon=float(self.epsilon), delta=float(self.delta), l2=float(self.l2), noise=float(self.noise)
        )
