"""The command `s3t serve`: a store's two servers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lightning_s3t.cli.imports import check_not_on_path, see_current_folder


def serve(store: Path, /, *, config: Path, tokens: Path | None = None) -> None:
    """Serve a store: a prediction server (LitServe), and a control server for requests.

    The prediction server is at POST /predict. The control server has /forget, /status, /receipts, /verify, /metrics and
    /openapi.json, and requires a bearer token. Both have /healthz and /readyz. Ctrl-C ends them.

    Args:
        store: The store's folder.
        config: The settings, in YAML: model (my_app:make_model), workers, host, port, control and so on; without a
            model, only the control server is served.
        tokens: A file with a role and a token in each line: "ask 5f2c..." for clients that may make requests, "look
            9b1e..." for read-only clients. By default they are read from the environment: S3T_ASK_TOKEN and
            S3T_LOOK_TOKEN.
    """
    see_current_folder()
    check_not_on_path(store)
    with tempfile.TemporaryDirectory(prefix="s3t-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # before prometheus-client is imported
        from lightning_s3t.service.serve import serve as serve_store
        from lightning_s3t.service.settings import read_settings

        serve_store(store.absolute(), read_settings(config), tokens)
