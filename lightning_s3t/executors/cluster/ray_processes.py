"""Processes of a fit's units on the machines of a Ray cluster, seen from the script's."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_s3t.engine.package_alias import is_aliased
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.errors import ConfigurationError, WorkerError
from lightning_s3t.executors.cluster.fingerprint import fingerprint, fingerprint_apart
from lightning_s3t.executors.cluster.slot import (
    Close,
    Command,
    Differs,
    End,
    Learn,
    Ready,
    Say,
    Setup,
    Slot,
    Start,
    variables_of_bits,
)
from lightning_s3t.executors.processes.messages import Begin, Failed, FromUnit, Lost, Noted, Warned
from lightning_s3t.executors.processes.server import Ended
from lightning_s3t.executors.processes.unit_processes import KeptInMemory, describe_death, pack_fit, show_warning

_LOOK = 2.0  # seconds between looks for new machines
_SAY = 15.0  # seconds without a machine after which the fit says that it waits
_FAREWELL = 10.0  # seconds in which the machines end their processes when the fit ends
_PATIENCE = 120.0  # seconds that a fit waits for a machine when all that it had have gone
_ATTEMPTS = 3  # how often a unit may be lost with its machine, and a machine's actor may die


class RayProcess:
    """A unit's process on a machine of the cluster.

    Args:
        number: Its number.
        slot: The slot that started it.
        what: Its activity, for messages: "unit 0/0-1 was trained".

    Attributes:
        what: Likewise.
        closed: Whether `close` was called.
        ended: Whether it has ended.
    """

    def __init__(self, number: int, slot: _Slot, what: str) -> None:
        self.number = number
        self.slot = slot
        self.what = what
        self.closed = False
        self.ended = False
        self._proofs: list[Path] = []

    def note(self, path: Path) -> None:
        """Tell the process that the file which it is about to write is on the list for erasure.

        The process removes an empty file beside it, which shows that this machine can erase what that one writes.

        Args:
            path: The file.
        """
        proof = path.parent / f".s3t-{secrets.token_hex(8)}"
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.touch()
        self._proofs.append(proof)
        self.slot.command(Say(self.number, pickle.dumps(Noted(str(proof)))))

    def close(self) -> None:
        """Stop listening to it."""
        self.closed = True
        self.slot.running.pop(self.number, None)
        for proof in self._proofs:
            proof.unlink(missing_ok=True)


@dataclass(eq=False)
class _Machine:
    """A machine of the cluster.

    Attributes:
        node: Ray's id of it.
        name: Its name, for people.
        size: Number of slots to start on it.
        package: The path of the package's memory in one of its processes.
        started: Number of its slots, ready or not.
        refused: Why it gets no units.
        deaths: How many of its actors have died.
    """

    node: str
    name: str
    size: int
    package: str | None = None
    started: int = 0
    refused: str | None = None
    deaths: int = 0


@dataclass(eq=False)
class _Slot:
    """An actor on a machine.

    Attributes:
        machine: The machine.
        actor: Ray's handle.
        answer: The answer that is waited for.
        ready: Whether it can start processes.
        running: The processes that it has started.
    """

    machine: _Machine
    actor: Any
    answer: Any
    ready: bool = False
    running: dict[int, RayProcess] = field(default_factory=dict)

    def command(self, command: Command) -> None:
        self.actor.command.options(concurrency_group="commands").remote(command)

    def listen(self) -> None:
        self.answer = self.actor.messages.options(concurrency_group="messages").remote()


class RayProcesses:
    """Starts processes on the machines of a Ray cluster with the state that a fit found, and listens to them.

    Each GPU of the cluster (on a CPU: as many cores as the script has threads) has an actor with a fork server. All of
    them belong to the script: Ray ends them with it. Nothing that the fit needs later is kept in the cluster.

    Args:
        trainer: The trainer, when all setup hooks have run.
        data: The training data.
        training: Trains a unit.
        settings: The settings of units.

    Raises:
        ConfigurationError: Ray is not installed, there is no cluster, or no machine of it can train units.
        UnsupportedError: Something cannot be sent to another process; named.
    """

    def __init__(self, trainer: pl.Trainer, data: TrainingData, training: UnitTraining, settings: UnitSettings) -> None:
        self._device = trainer.strategy.root_device.type
        self._at_once = settings.parallel_units
        self._threads = torch.get_num_threads()
        self._number = 0
        self._machines: dict[str, _Machine] = {}
        self._slots: list[_Slot] = []
        self._heard: list[tuple[RayProcess, FromUnit]] = []
        self._lost: Counter[str] = Counter()
        self._memory = KeptInMemory()
        self._modules: tuple[str, ...] = ()
        self._looked_at = 0.0
        self._useless_since = time.monotonic()
        self._said = False
        self._had_one = False
        self._reason: BaseException | None = None
        self._ray, self._connected = _connect()
        try:
            self._setup = self._pack(trainer, data, training)
            groups = {"commands": 1, "messages": 1}  # a thread for each
            remote = self._ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups=groups)
            self._actor = remote(Slot)
            self._look_for_machines()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        """Number of processes that may work at the same time."""
        return self._at_once * sum(slot.ready for slot in self._slots)

    def start(self, begin: Begin, what: str, another: bool = False) -> RayProcess:
        """Start a job in a process, as soon as there is room for one.

        Args:
            begin: The job.
            what: The same, for messages: "unit 0/0-1 was trained".
            another: Whether one more process will be needed later.

        Raises:
            ConfigurationError: No machine of the cluster can train units.
            WorkerError: There has been no such machine for a while.
        """
        while (slot := self._free_slot()) is None:
            self._heard += self._hear(_LOOK)
        self._number += 1
        process = RayProcess(self._number, slot, what)
        slot.running[process.number] = process
        slot.command(Start(process.number, pickle.dumps(begin), another))
        return process

    def listen(self, processes: Sequence[RayProcess], seconds: float) -> Iterator[tuple[RayProcess, FromUnit]]:
        """Yield the messages of processes, except warnings, which are shown; return soon after a message.

        `Lost` is the last message of one whose machine has died.

        Args:
            processes: Those to listen to. A process must be closed after its last message.
            seconds: For how long at most.

        Raises:
            WorkerError: A process has died, but not its machine; or no machine is left.
        """
        self._heard += self._hear(0 if self._heard else seconds)
        heard, self._heard = self._heard, []
        for process, message in heard:
            if not process.closed:
                yield process, message

    def learn(self, modules: tuple[str, ...]) -> None:
        """Import the modules that the rehearsal imported once for all units of a slot.

        Args:
            modules: The modules.
        """
        self._modules = modules
        for slot in self._slots:
            if slot.ready:
                slot.command(Learn(modules))

    def kill(self, process: RayProcess) -> None:
        """End a process, and wait until it has ended, or its machine has.

        Args:
            process: Which.
        """
        slot = process.slot
        if slot in self._slots and not process.ended:
            slot.running[process.number] = process  # to hear of its end
            slot.command(End(process.number))
            while slot in self._slots and not process.ended:
                self._heard += self._hear(_LOOK, dying=process)
        process.close()

    def say_what_was_kept(self) -> None:
        """Name data that callbacks kept in memory, since it was lost with the units' processes."""
        self._memory.say()

    def close(self) -> None:
        """End all processes, and leave the cluster as it was; when this returns, none can write any more."""
        slots, self._slots = self._slots, []
        with contextlib.suppress(Exception):  # a machine may be gone
            self._wait_for_ends([slot for slot in slots if slot.ready])
        for slot in slots:
            with contextlib.suppress(Exception):
                self._ray.kill(slot.actor)
            for process in list(slot.running.values()):
                process.close()
        self._setup = None
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _wait_for_ends(self, slots: Sequence[_Slot]) -> None:
        for slot in slots:
            slot.command(Close())
        answers = {slot.answer: slot for slot in slots}
        deadline = time.monotonic() + _FAREWELL
        while answers and time.monotonic() < deadline:
            for answer in self._ray.wait(list(answers), timeout=_LOOK)[0]:
                slot = answers.pop(answer)
                with contextlib.suppress(self._ray.exceptions.RayError):
                    if all(number != 0 for number, _ in self._ray.get(answer)):
                        slot.listen()
                        answers[slot.answer] = slot

    def _pack(self, trainer: pl.Trainer, data: TrainingData, training: UnitTraining) -> Setup | None:
        import numpy

        # a GPU's properties need a context, which would take its memory from the units
        here = fingerprint if self._device == "cpu" else fingerprint_apart
        at_home = self._ray.get_runtime_context().runtime_env.get("working_dir") is None
        with closing(pack_fit(trainer, data, training)) as package, package.contents() as contents:
            return Setup(
                [self._ray.put(numpy.frombuffer(contents, numpy.uint8))],
                package.header,
                package.on_device,
                here(self._device),
                self._device,
                variables_of_bits(os.environ),
                os.getcwd() if at_home else None,
                list(sys.path),
                list(sys.argv),
                is_aliased(),
            )

    def _free_slot(self) -> _Slot | None:
        free = [slot for slot in self._slots if slot.ready and len(slot.running) < self._at_once]
        return min(free, key=lambda slot: len(slot.running), default=None)

    def _hear(self, seconds: float, dying: RayProcess | None = None) -> list[tuple[RayProcess, FromUnit]]:
        """Listen to the cluster for a moment; return what processes have said."""
        if time.monotonic() > self._looked_at + _LOOK:
            self._look_for_machines()
        heard: list[tuple[RayProcess, FromUnit]] = []
        answers = {slot.answer: slot for slot in self._slots}
        if not answers:
            time.sleep(seconds)
            return heard
        ready, waiting = self._ray.wait(list(answers), timeout=seconds)
        ready += self._ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] if ready and waiting else []
        for answer in ready:
            slot = answers[answer]
            try:
                said = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                heard += self._lose(slot, error)
                continue
            if not slot.ready:
                self._take(slot, said)
                continue
            for number, message in said:
                heard += self._understood(slot, number, message, dying)
            slot.listen()
        return heard

    def _understood(
        self, slot: _Slot, number: int, message: bytes | Ended, dying: RayProcess | None
    ) -> Iterator[tuple[RayProcess, FromUnit]]:
        process = slot.running.get(number)
        if process is None:  # it was closed after its last message
            return
        if isinstance(message, Ended):
            process.ended = True
            if process is not dying:
                yield process, Failed.of(describe_death(process.what, message.code, f" on {slot.machine.name}"))
            return
        if process is dying:
            return
        found = pickle.loads(message)
        if isinstance(found, Warned):
            show_warning(found)
            return
        self._memory.note(found)
        yield process, found

    def _take(self, slot: _Slot, answer: Ready | Differs | Failed) -> None:
        """Take the answer of an actor that has looked at its machine and loaded the fit."""
        machine = slot.machine
        if isinstance(answer, Ready):
            slot.ready = self._had_one = True
            machine.package = machine.package or answer.package
            if self._modules:
                slot.command(Learn(self._modules))
            slot.listen()
            self._fill(machine)
            return
        self._drop(slot)
        if isinstance(answer, Failed):
            self._reason = answer.exception(f"trainer, module and data were loaded on {machine.name}")
            why = f"trainer, module and data cannot be loaded there ({answer.text})"
        else:
            why = f"its {', its '.join(answer.how)}"
        if any(other.ready for other in self._slots if other.machine is machine):  # another GPU of it differs
            machine.size -= 1
            rank_zero_warn(f"S3T: a part of the machine {machine.name} gets no units, because {why}.")
        else:
            self._refuse(machine, why)

    def _refuse(self, machine: _Machine, why: str) -> None:
        machine.refused = why
        rank_zero_warn(f"S3T: the machine {machine.name} gets no units, because {why}.")

    def _lose(self, slot: _Slot, error: Exception) -> list[tuple[RayProcess, FromUnit]]:
        """Give up an actor that has died, alone or with its machine; return what its processes would have said."""
        machine = slot.machine
        self._drop(slot)
        machine.deaths += 1
        machine.package = None
        if machine.refused is None and machine.deaths >= _ATTEMPTS and self._is_alive(machine):
            self._refuse(machine, f"its processes have died {machine.deaths} times ({_first_line(error)})")
        found: list[tuple[RayProcess, FromUnit]] = []
        for process in slot.running.values():
            process.ended = True
            self._lost[process.what] += 1
            why = f"while {process.what}, the connection to {machine.name} was lost ({_first_line(error)})"
            if self._lost[process.what] < _ATTEMPTS:
                found.append((process, Lost(why)))
            else:
                found.append(
                    (
                        process,
                        Failed.of(
                            WorkerError(f"{why}, as {_ATTEMPTS - 1} times before. Finished units are in the store.")
                        ),
                    )
                )
        return found

    def _drop(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        slot.machine.started -= 1
        # also one that can only not be reached: what it still sends is no longer listened to
        with contextlib.suppress(Exception):
            self._ray.kill(slot.actor)

    def _is_alive(self, machine: _Machine) -> bool:
        return any(node["NodeID"] == machine.node and node["Alive"] for node in self._ray.nodes())

    def _look_for_machines(self) -> None:
        """Start actors on new machines, and on those that have lost theirs; fail if there is nothing to hope for."""
        self._looked_at = now = time.monotonic()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        there = {node["NodeID"] for node in nodes}
        self._machines = {node: machine for node, machine in self._machines.items() if node in there}
        for node in _suitable(nodes, self._device):
            machine = self._machines.get(node["NodeID"])
            if machine is None:
                machine = self._meet(node)
            self._fill(machine)
        if any(slot.ready for slot in self._slots):
            self._useless_since = now
            return
        waited = now - self._useless_since
        if not self._slots and (not self._had_one or waited > _PATIENCE):
            raise self._nothing_left()
        if waited > _SAY and not self._said:
            self._said = True
            rank_zero_info(f"S3T: waiting for the cluster: no machine is ready yet, or none has {self._wanted} free.")

    def _meet(self, node: dict[str, Any]) -> _Machine:
        resources, name = node["Resources"], f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        self._machines[node["NodeID"]] = machine = _Machine(node["NodeID"], name, 0)
        if self._device == "cuda":
            machine.size = int(resources.get("GPU", 0))
        else:
            machine.size = int(resources.get("CPU", 0)) // self._cores
        if machine.size == 0:
            self._refuse(machine, f"it does not offer {self._wanted}")
        return machine

    @property
    def _cores(self) -> int:
        return self._threads * self._at_once

    @property
    def _wanted(self) -> str:
        if self._device == "cuda":
            return "a GPU"
        return f"{self._cores} CPUs (torch.get_num_threads() of the script for each unit)"

    def _fill(self, machine: _Machine) -> None:
        """Start actors: one, and all others when it has loaded the fit."""
        loaded = any(slot.ready for slot in self._slots if slot.machine is machine)
        size = machine.size if loaded else min(machine.size, 1)
        while machine.refused is None and machine.started < size:
            self._start_slot(machine)

    def _start_slot(self, machine: _Machine) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        needs = {"num_cpus": 1, "num_gpus": 1} if self._device == "cuda" else {"num_cpus": self._cores}
        there = NodeAffinitySchedulingStrategy(machine.node, soft=False)
        actor = self._actor.options(scheduling_strategy=there, **needs).remote()
        machine.started += 1
        self._slots.append(_Slot(machine, actor, actor.begin.remote(self._setup, machine.package)))

    def _nothing_left(self) -> ConfigurationError | WorkerError:
        reasons = [f"  - {machine.name}: {machine.refused}" for machine in self._machines.values() if machine.refused]
        if self._had_one:
            error: ConfigurationError | WorkerError = WorkerError(
                "No machine of the cluster is left to train units. Finished units are in the store; the next fit "
                "continues from there." + "".join(f"\n{reason}" for reason in reasons)
            )
        else:
            error = ConfigurationError(
                "No machine of the Ray cluster can train this fit's units. Nothing was changed. Expected machines "
                "like the one that runs the script, with what the script imports."
                + ("".join(f"\n{reason}" for reason in reasons) or f" None offers {self._wanted}.")
            )
        error.__cause__ = self._reason
        return error


def _suitable(nodes: Sequence[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """Return the machines to train on: on a CPU those without a GPU, as long as there are any."""
    if device == "cuda":
        return [node for node in nodes if node["Resources"].get("GPU", 0) >= 1]
    computing = [node for node in nodes if node["Resources"].get("CPU", 0) >= 1]
    return [node for node in computing if not node["Resources"].get("GPU")] or computing


def _connect() -> tuple[Any, bool]:
    """Return Ray, connected to a cluster, and whether this call has connected it."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            'S3T(executor="ray") needs ray: pip install "lightning-s3t[ray]", on every machine of the cluster.'
        ) from error
    if ray.is_initialized():
        if ray.util.client.ray.is_connected():
            raise ConfigurationError(_no_client("the script is connected through Ray Client"))
        return ray, False
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address.startswith("ray://"):
        raise ConfigurationError(_no_client(f"the address is {address!r}"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"There is no Ray cluster at the address {address!r} ({_first_line(error)}). Nothing was changed. Start "
            "one (ray start --head), or set RAY_ADDRESS to its address, or connect with ray.init before the fit."
        ) from error
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Lightning's handler ends a fit
    return ray, True


def _no_client(found: str) -> str:
    return (
        f"S3T cannot train on a cluster from outside of it: {found}. Run the script on a machine of the cluster, which "
        "has to be like those that train anyway: ray job submit, or RAY_ADDRESS=HOST:6379 there."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
