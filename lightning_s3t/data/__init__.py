"""LightningDataModules whose train rows say who owns them, for `S3T(subjects="owners")`."""

from lightning_s3t.data.cifar import CIFARData
from lightning_s3t.data.digits import DigitsData
from lightning_s3t.data.image_folder import ImageFolderData
from lightning_s3t.data.instructions import InstructionData
from lightning_s3t.data.rows import OwnedData, OwnedRows
from lightning_s3t.data.text import TextData

__all__ = ["CIFARData", "DigitsData", "ImageFolderData", "InstructionData", "OwnedData", "OwnedRows", "TextData"]
