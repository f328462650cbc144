"""The apps of Flower, with messages that are passed on by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t import Store
from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.federated import Contribution, FederatedHead, collect, make_client_app, make_server_app
from lightning_s3t.methods import ClosedForm
from tests.federated.test_federated_head import people_at, tensors
from tests.people import fit

try:
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity  # which Flower sets in the processes of apps

    HAS_FLOWER = True
except ModuleNotFoundError:
    HAS_FLOWER = False
needs_flower = pytest.mark.skipif(
    not HAS_FLOWER, reason="flwr pins fastapi and typer to one minor release, so it is not in the extra dev"
)


@pytest.mark.skipif(HAS_FLOWER, reason="says what to do without flwr, which is installed")
def test_without_flower_the_message_says_what_to_install() -> None:
    with pytest.raises(ConfigurationError, match=r"lightning-s3t\[flower\]"):
        make_client_app(lambda context: "")


class Grid:
    """Passes messages on to client apps in this process, the last node first."""

    def __init__(self, clients: dict[int, Any]) -> None:
        self.clients = clients  # by node, its app and its configuration; None if it does not answer
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1

    def get_node_ids(self) -> list[int]:
        return list(self.clients)

    def create_message(self, content: Any, message_type: str, dst_node_id: int, group_id: str) -> Any:
        return Message(content, dst_node_id, message_type, group_id=group_id)

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            if self.clients[node] is None:
                continue
            app, configuration = self.clients[node]
            TaskIdentity.node_id = node
            context = Context(1, node, configuration, RecordDict(), {})
            try:
                replies.append(app(message, context))
            except ConfigurationError as error:  # a node sends it as an error
                replies.append(Message(Error(0, str(error)), reply_to=message))
            TaskIdentity.node_id = 1
        return replies[::-1]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two clients' stores, for copying only."""
    folder = tmp_path_factory.mktemp("clients")
    for client in (0, 1):
        fit(folder / f"client-{client}", people_at(client), method=ClosedForm())
    return folder


@pytest.fixture
def clients(stores: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stores, tmp_path / "clients"))


def contribution_at(clients: Path, client: int) -> Contribution:
    with Store.open(clients / f"client-{client}") as store:
        return Contribution.of(store)


def grid_of(clients: Path, **changed: Any) -> Grid:
    app = make_client_app(lambda context: clients / str(context.node_config["client"]))
    nodes = {10 + client: (app, {"client": f"client-{client}"}) for client in (0, 1)}
    return Grid({**nodes, **{int(node[4:]): other for node, other in changed.items()}})


@pytest.mark.nightly
@needs_flower
def test_a_run_collects_every_client_and_a_later_one_what_a_request_has_left(clients: Path, tmp_path: Path) -> None:
    head = FederatedHead(tmp_path / "head")
    changes = collect(grid_of(clients), head)
    assert [(change.client, change.rows_before) for change in changes] == [("client-0", 0), ("client-1", 0)]
    with Store.open(clients / "client-1") as store:
        store.forget(["user-3"])
    make_server_app(head.folder)(grid_of(clients), Context(1, 0, {}, RecordDict(), {}))
    assert [change.requests for change in head.history()] == [0, 0, 0, 1]
    wanted = contribution_at(clients, 0).sums
    wanted.add_sums(contribution_at(clients, 1).sums)
    assert tensors(head.sums()) == tensors(wanted)


@pytest.mark.nightly
@needs_flower
def test_clients_that_do_not_answer_are_named_and_the_others_updated(clients: Path, tmp_path: Path) -> None:
    head = FederatedHead(tmp_path / "head")
    collect(grid_of(clients), head)
    with Store.open(clients / "client-1") as store:
        store.forget(["user-3"])
    rows = contribution_at(clients, 1).sums.rows
    with pytest.raises(StoreError, match=r"1 clients were updated.*node 10: no answer.*'client-0' has a contribution"):
        collect(grid_of(clients, node10=None), head)
    assert head.clients()["client-1"] == rows
    app = make_client_app(lambda context: clients / "client-0")
    with pytest.raises(StoreError, match=r"node 10: the client failed .*This node has no name"):
        collect(grid_of(clients, node10=(app, {})), head)
    with pytest.raises(StoreError, match="two nodes have the name 'client-1'"):
        collect(grid_of(clients, node10=(app, {"client": "client-1"})), head)
