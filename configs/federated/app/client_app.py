"""What every hospital runs: it sends the sums over its rows. Name and store are in its node's configuration."""

from lightning_s3t.federated import make_client_app

app = make_client_app()
