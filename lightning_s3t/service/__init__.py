"""The service: a prediction server, and a control server for requests to be forgotten (extra `serve`)."""

from lightning_s3t.service.control import make_control_app
from lightning_s3t.service.settings import ControlSettings, ServiceSettings, read_settings

__all__ = ["ControlSettings", "ServiceSettings", "make_control_app", "read_settings"]
