"""The two sides of a federated closed-form head as apps of Flower (https://flower.ai), which carries the messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.federated.contribution import Contribution
from lightning_s3t.federated.federated_head import Change, FederatedHead
from lightning_s3t.store import Store

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

ACTION = "contribution"
NAME = "client"
_RECORD, _DATA = "contribution", "data"


def make_client_app(find_store: Callable[[Context], str | Path]) -> ClientApp:
    """Return the app of each client: asked for its contribution, it reads it from the client's store.

    Its name is the entry `client` of the node's configuration: `flower-supernode --node-config 'client="hospital-7"'`.
    Requests are made to the store as ever (`Store.forget`, `s3t forget`); ids never leave the client.

    Args:
        find_store: Gives the folder of the client's store from Flower's context.

    Raises:
        ConfigurationError: flwr is not installed.
    """
    _import_flower()
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.query(ACTION)
    def contribute(message: Message, context: Context) -> Message:
        name = context.node_config.get(NAME)
        if not name:
            raise ConfigurationError(
                f"This node has no name. Start it with: flower-supernode --node-config '{NAME}=\"hospital-7\"'."
            )
        with Store.open(find_store(context)) as store:
            data = Contribution.of(store).encode()
        return Message(RecordDict({_RECORD: ConfigRecord({NAME: str(name), _DATA: data})}), reply_to=message)

    return app


def collect(grid: Grid, head: FederatedHead, timeout: float = 600.0) -> list[Change]:
    """Ask all connected clients for their contributions, and update a head with those that come.

    Args:
        grid: Flower's access to the clients.
        head: The head.
        timeout: Seconds to wait for answers.

    Returns:
        The changes, in the order of the clients' names.

    Raises:
        StoreError: A client has not answered, or its contribution was refused. The last contributions of these clients
            still count, with everyone in it who has asked there since; those of all others were updated.
    """
    _import_flower()
    from flwr.app import RecordDict

    nodes = list(grid.get_node_ids())
    messages = [grid.create_message(RecordDict(), f"query.{ACTION}", node, "contributions") for node in nodes]
    found, failed = dict[str, Contribution](), list[str]()
    waiting = set(nodes)
    for reply in grid.send_and_receive(messages, timeout=timeout):
        node = reply.metadata.src_node_id
        waiting.discard(node)
        try:
            name, contribution = _read(reply)
            if name in found:
                raise ConfigurationError(f"two nodes have the name {name!r}")
            found[name] = contribution
        except (ConfigurationError, StoreError) as error:
            failed.append(f"node {node}: {error}")
    failed += [f"node {node}: no answer within {timeout:g} s" for node in sorted(waiting)]
    silent = sorted(head.clients().keys() - found)
    failed += [f"client {name!r} has a contribution, but sent none now" for name in silent]
    changes = list[Change]()
    for name in sorted(found):
        try:
            changes.append(head.update(name, found[name]))
        except (ConfigurationError, StoreError) as error:
            failed.append(f"client {name!r}: {error}")
    if failed:
        raise StoreError(
            f"{len(changes)} clients were updated, but not all: {'; '.join(failed)}. The last contributions of the "
            "others still count. Collect again when they are there, or remove them."
        )
    return changes


def make_server_app(folder: str | Path, timeout: float = 600.0) -> ServerApp:
    """Return the app of the server: each run collects the contributions of all clients once.

    Args:
        folder: Where the head is kept, as for `FederatedHead`.
        timeout: Seconds to wait for answers.

    Raises:
        ConfigurationError: flwr is not installed.
    """
    _import_flower()
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for change in collect(grid, FederatedHead(folder), timeout):
            print(f"{change.client}: {change.rows_before} rows before, {change.rows} now")

    return app


def _read(reply: Any) -> tuple[str, Contribution]:
    if reply.has_error():
        raise ConfigurationError(f"the client failed ({reply.error.reason})")
    record: Mapping[str, Any] = reply.content.config_records.get(_RECORD, {})
    name, data = record.get(NAME), record.get(_DATA)
    if not isinstance(name, str) or not isinstance(data, bytes):
        raise ConfigurationError("the answer has no contribution in it")
    return name, Contribution.decode(data)


def _import_flower() -> None:
    try:
        import flwr  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            'Federated heads by Flower need flwr: pip install "lightning-s3t[flower]". Without it, send '
            "Contribution.encode() to the server by any other means."
        ) from error
