"""What the server runs: it collects every hospital's sums once."""

from lightning_s3t.federated import make_server_app

app = make_server_app("runs/federated", clients=["hospital-3", "hospital-7"])
