"""The demo: the whole story on real data, offline, in minutes."""

from lightning_s3t.zoo.demo.comparing import make_digits_app
from lightning_s3t.zoo.demo.story import DemoResult, run_demo
from lightning_s3t.zoo.demo.training import QUICK, DemoSettings

__all__ = ["QUICK", "DemoResult", "DemoSettings", "make_digits_app", "run_demo"]
