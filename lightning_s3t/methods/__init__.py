"""Unlearning methods: what each one trains, how a deletion request affects it, and its guarantee."""

from lightning_s3t.methods.adaptive_ssd import ASSD, LFSSD
from lightning_s3t.methods.amnesiac import Amnesiac
from lightning_s3t.methods.bad_teacher import BadTeacher
from lightning_s3t.methods.certified_head import CertifiedHead
from lightning_s3t.methods.closed_form import ClosedForm
from lightning_s3t.methods.descent import DescentMethod
from lightning_s3t.methods.editing import Answer, EditingMethod, EditRows, EditSession, TrainingRecorder
from lightning_s3t.methods.fine_tune import FineTune
from lightning_s3t.methods.gradient_ascent import GradientAscent, NegGradPlus
from lightning_s3t.methods.influence import Influence
from lightning_s3t.methods.method import Need, UnlearningMethod
from lightning_s3t.methods.pgu import PGU
from lightning_s3t.methods.random_labels import LabelFlipping, RandomLabels, SalUn
from lightning_s3t.methods.registry import METHODS, method_of, register_method
from lightning_s3t.methods.retrain import Retrain
from lightning_s3t.methods.s3t import S3TMethod
from lightning_s3t.methods.scrub import SCRUB
from lightning_s3t.methods.sisa import SISA
from lightning_s3t.methods.sparse import Sparse
from lightning_s3t.methods.ssd import SSD

__all__ = [
    "ASSD",
    "LFSSD",
    "METHODS",
    "PGU",
    "SCRUB",
    "SISA",
    "SSD",
    "Amnesiac",
    "Answer",
    "BadTeacher",
    "CertifiedHead",
    "ClosedForm",
    "DescentMethod",
    "EditRows",
    "EditSession",
    "EditingMethod",
    "FineTune",
    "GradientAscent",
    "Influence",
    "LabelFlipping",
    "Need",
    "NegGradPlus",
    "RandomLabels",
    "Retrain",
    "S3TMethod",
    "SalUn",
    "Sparse",
    "TrainingRecorder",
    "UnlearningMethod",
    "method_of",
    "register_method",
]
