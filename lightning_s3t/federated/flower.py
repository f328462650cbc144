"""The two sides of a federated closed-form head as apps of Flower (https://flower.ai), which carries the messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
NAME, STORE = "client", "store"  # entries of a node's configuration
_RECORD, _DATA = "contribution", "data"


def make_client_app(find_store: Callable[[Context], str | Path] | None = None) -> ClientApp:
    """Return the app of each client: asked for its contribution, it reads it from the client's store.

    The client's name, and the folder of its store, are entries of the node's configuration:
    `flower-supernode --node-config 'client="hospital-7" store="/data/store"'`. A relative path starts at the folder in
    which the node was started. Requests are made to the store as ever (`Store.forget`, `s3t forget`); ids never leave
    the client.

    Args:
        find_store: Gives the folder of the client's store from Flower's context; None for the entry `store`.

    Raises:
        ConfigurationError: flwr is not installed.
    """
    _import_flower()
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.query(ACTION)
    def contribute(message: Message, context: Context) -> Message:
        name = _of_node(context, NAME)
        with Store.open(_of_node(context, STORE) if find_store is None else find_store(context)) as store:
            data = Contribution.of(store).encode()
        return Message(RecordDict({_RECORD: ConfigRecord({NAME: name, _DATA: data})}), reply_to=message)

    return app


def collect(
    grid: Grid, head: FederatedHead, timeout: float = 600.0, clients: Collection[str] | None = None
) -> list[Change]:
    """Ask all connected clients for their contributions, and update a head with those that come.

    Args:
        grid: Flower's access to the clients.
        head: The head.
        timeout: Seconds to wait for answers.
        clients: The names of all clients. None accepts any name, and misses only clients that have contributed before.

    Returns:
        The changes, in the order of the clients' names.

    Raises:
        StoreError: A client has not answered, or its contribution was refused. The last contributions of these clients
            still count, with everyone in it who has asked there since; those of all others were updated.
    """
    _import_flower()
    from flwr.app import Message, RecordDict

    nodes = list(grid.get_node_ids())
    messages = [Message(RecordDict(), node, f"query.{ACTION}", group_id="contributions") for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    # not by the reply's source, which is Flower's own node in an error that no client has sent
    node_of = {message.metadata.message_id: node for message, node in zip(messages, nodes, strict=True)}
    failed = [] if nodes else ["no node is connected"]
    answers = dict[str, list[Contribution]]()
    for reply in replies:
        node = node_of.pop(reply.metadata.reply_to_message_id)
        try:
            name, contribution = _read(reply)
            answers.setdefault(name, []).append(contribution)
        except (ConfigurationError, StoreError) as error:
            failed.append(f"node {node}: {error}")
    failed += [f"node {node}: no answer within {timeout:g} s" for node in sorted(node_of.values())]
    silent = sorted((head.clients().keys() if clients is None else {*clients, *head.clients()}) - answers.keys())
    failed += [f"client {name!r}: sent nothing" for name in silent]
    changes = list[Change]()
    for name in sorted(answers):
        try:
            changes.append(head.update(name, _only(answers[name], name, clients)))
        except (ConfigurationError, StoreError) as error:
            failed.append(f"client {name!r}: {error}")
    if failed:
        raise StoreError(
            f"A run has to update every client. Not updated: {'; '.join(failed)}. Updated: "
            f"{', '.join(change.client for change in changes) or 'none'}. What the others sent last still counts, with "
            "everyone in it. Run again when they are there, or remove them with FederatedHead.remove."
        )
    return changes


def make_server_app(folder: str | Path, timeout: float = 600.0, clients: Collection[str] | None = None) -> ServerApp:
    """Return the app of the server: each run collects the contributions of all clients once.

    Args:
        folder: Where the head is kept, as for `FederatedHead`. A relative path starts at the folder in which Flower's
            SuperLink was started.
        timeout: Seconds to wait for answers.
        clients: The names of all clients, without which a run fails, and beside which it accepts none. None accepts any
            name, and misses only clients that have contributed before.

    Raises:
        ConfigurationError: flwr is not installed.
    """
    _import_flower()
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for change in collect(grid, FederatedHead(folder), timeout, clients):
            print(
                f"{change.client}: {change.rows} rows, {change.rows_before} before; requests carried out: "
                f"{change.requests}"
            )

    return app


def _of_node(context: Context, entry: str) -> str:
    value = context.node_config.get(entry)
    if value is None or value == "":
        raise ConfigurationError(
            f"The configuration of this node has no {entry}. Start it with: flower-supernode --node-config "
            f'\'{NAME}="hospital-7" {STORE}="/data/store"\'.'
        )
    return str(value)


def _only(answers: list[Contribution], name: str, clients: Collection[str] | None) -> Contribution:
    if clients is not None and name not in clients:
        raise ConfigurationError(f"is none of the expected clients: {', '.join(sorted(clients)) or 'there are none'}")
    if len(answers) > 1:
        raise ConfigurationError(f"{len(answers)} nodes have this name")
    return answers[0]


def _read(reply: Any) -> tuple[str, Contribution]:
    if reply.has_error():
        raise ConfigurationError(f"failed ({reply.error.reason})")
    record: Mapping[str, Any] = reply.content.config_records.get(_RECORD, {})
    name, data = record.get(NAME), record.get(_DATA)
    if not isinstance(name, str) or not isinstance(data, bytes):
        raise ConfigurationError("sent an answer without a contribution")
    return name, Contribution.decode(data)


def _import_flower() -> None:
    try:
        import flwr  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            'Federated heads by Flower need flwr: pip install "lightning-s3t[flower]". Without it, send '
            "Contribution.encode() to the server by any other means."
        ) from error
