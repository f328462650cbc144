"""Federated closed-form heads: clients send integer sums, and a request at a client replaces them."""

from lightning_s3t.federated.contribution import Contribution
from lightning_s3t.federated.federated_head import Change, FederatedHead
from lightning_s3t.federated.flower import collect, make_client_app, make_server_app

__all__ = ["Change", "Contribution", "FederatedHead", "collect", "make_client_app", "make_server_app"]
