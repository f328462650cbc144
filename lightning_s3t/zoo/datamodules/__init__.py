"""LightningDataModules whose train rows have owners, for `S3T(subjects="owners")`."""

from lightning_s3t.zoo.datamodules.cifar import CIFARData
from lightning_s3t.zoo.datamodules.digits import DigitsData
from lightning_s3t.zoo.datamodules.image_folder import ImageFolderData
from lightning_s3t.zoo.datamodules.instructions import InstructionData
from lightning_s3t.zoo.datamodules.rows import OwnedData, OwnedRows
from lightning_s3t.zoo.datamodules.text import TextData

__all__ = ["CIFARData", "DigitsData", "ImageFolderData", "InstructionData", "OwnedData", "OwnedRows", "TextData"]
