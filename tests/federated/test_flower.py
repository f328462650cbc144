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
from tests.federated.having_flower import HAS_FLOWER, needs_flower
from tests.federated.test_federated_head import people_at, tensors
from tests.people import fit

if HAS_FLOWER:
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity  # which Flower sets in the processes of apps


@pytest.mark.skipif(HAS_FLOWER, reason="says what to do without flwr, which is installed")
def test_without_flower_the_message_says_what_to_install() -> None:
    with pytest.raises(ConfigurationError, match=r"lightning-s3t\[flower\]"):
        make_client_app(lambda context: "")


class Grid:
    """Passes messages on to client apps in this process, the last node first."""

    def __init__(self, clients: dict[int, Any]) -> None:
        self.clients = clients  # by node, its app and its configuration; "silent" or "gone" if it does not answer
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1

    def get_node_ids(self) -> list[int]:
        return list(self.clients)

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id  # as Flower's grid does
            client = self.clients[message.metadata.dst_node_id]
            if client == "gone":  # Flower's server answers for a node whose heartbeats have stopped, as node 1
                replies.append(Message(Error(0, "Node Unavailable"), reply_to=message))
                replies[-1].metadata.__dict__["_src_node_id"] = 1
            elif client != "silent":
                replies.append(self.answer(message, *client))
        return replies[::-1]

    def answer(self, message: Any, app: Any, configuration: dict[str, str]) -> Any:
        TaskIdentity.node_id = message.metadata.dst_node_id
        try:
            return app(message, Context(1, TaskIdentity.node_id, configuration, RecordDict(), {}))
        except ConfigurationError as error:  # a node sends it as an error
            return Message(Error(0, str(error)), reply_to=message)
        finally:
            TaskIdentity.node_id = 1


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
    return Grid({10: at(clients, 0), 11: at(clients, 1)} | {int(node[4:]): other for node, other in changed.items()})


def at(clients: Path, number: int, name: str | None = None) -> tuple[Any, dict[str, str]]:
    """The app and the configuration of a client's node."""
    client = f"client-{number}"
    return make_client_app(), {"client": client if name is None else name, "store": str(clients / client)}


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
@pytest.mark.parametrize(
    ("state", "reason"), [("silent", "no answer within 600 s"), ("gone", r"failed \(Node Unavailable\)")]
)
def test_clients_that_do_not_answer_are_named_and_the_others_updated(
    clients: Path, tmp_path: Path, state: str, reason: str
) -> None:
    head = FederatedHead(tmp_path / "head")
    collect(grid_of(clients), head)
    with Store.open(clients / "client-1") as store:
        store.forget(["user-3"])
    wanted = rf"Not updated: node 10: {reason}; client 'client-0': sent nothing. Updated: client-1."
    with pytest.raises(StoreError, match=wanted):
        collect(grid_of(clients, node10=state), head)
    assert [(change.client, change.requests) for change in head.history()[2:]] == [("client-1", 1)]


@pytest.mark.nightly
@needs_flower
def test_a_first_run_without_all_expected_clients_fails(clients: Path, tmp_path: Path) -> None:
    head = FederatedHead(tmp_path / "head")
    with pytest.raises(StoreError, match=r"Not updated: no node is connected. Updated: none"):
        collect(Grid({}), head)
    with pytest.raises(StoreError, match=r"Not updated: client 'client-2': sent nothing. Updated: client-0, client-1"):
        collect(grid_of(clients), head, clients=["client-0", "client-1", "client-2"])


@pytest.mark.nightly
@needs_flower
def test_nodes_with_a_wrong_name_change_nothing(clients: Path, tmp_path: Path) -> None:
    head, names = FederatedHead(tmp_path / "head"), ["client-0", "client-1"]
    with pytest.raises(StoreError, match=r"node 10: failed \(The configuration of this node has no client\."):
        collect(grid_of(clients, node10=at(clients, 0, name="")), head)
    assert list(head.clients()) == ["client-1"]
    with pytest.raises(StoreError, match="client 'client-1': 2 nodes have this name"):
        collect(grid_of(clients, node10=at(clients, 0, name="client-1")), head)
    with pytest.raises(StoreError, match="client 'client-9': is none of the expected clients: client-0, client-1"):
        collect(grid_of(clients, node10=at(clients, 0, name="client-9")), head, clients=names)
    assert [(change.client, change.rows_before) for change in head.history()] == [
        ("client-1", 0),
        ("client-1", contribution_at(clients, 1).sums.rows),  # by the last run
    ]
