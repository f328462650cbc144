"""The divergence of a student from a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of softened answers, times the square of the temperature; the mean over rows.

    Args:
        student: Logits, shape `[..., classes]`.
        teacher: Logits of the same shape, without gradients.
        temperature: The divisor of both.

    Example:
        >>> import torch
        >>> divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])).item()
        0.0
    """
    classes = student.shape[-1]
    of_student = F.log_softmax(student.reshape(-1, classes) / temperature, -1)
    of_teacher = F.log_softmax(teacher.reshape(-1, classes) / temperature, -1)
    return F.kl_div(of_student, of_teacher, log_target=True, reduction="batchmean") * temperature**2
