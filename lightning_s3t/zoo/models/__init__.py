"""LightningModules to fine-tune and to forget with: images, texts, and language models."""

from lightning_s3t.zoo.models.image_classifier import ImageClassifier
from lightning_s3t.zoo.models.language_model import CausalLM
from lightning_s3t.zoo.models.text_classifier import TextClassifier

__all__ = ["CausalLM", "ImageClassifier", "TextClassifier"]
