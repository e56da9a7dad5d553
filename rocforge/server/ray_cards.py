"""RayMachines: the cards of a replica that has several, each a process of Ray, on one machine or more."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rocforge.card import serve
from rocforge.device.links import Address, Door, connect
from rocforge.engine.cards import CardJob, CardProcess

Place = tuple[str, str | None]
"""The address of a machine, and Ray's number of the GPU there that a process has got."""


class RayMachines:
    """The cards of this replica, in the bundles of its placement group: the first is its own, others have actors.

    Args:
        cards: how many.
        on_cpu: whether they are CPUs.

    Attributes:
        devices, hosts: as in CardJob.
    """

    def __init__(self, cards: int, on_cpu: bool):
        group, kind = ray.util.get_current_placement_group(), ray.remote(CardActor)
        resources = {"num_cpus": 1, "num_gpus": 0 if on_cpu else 1}
        self._actors = [
            kind.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank), **resources).remote()
            for rank in range(1, cards)
        ]
        places = [place(), *ray.get([actor.place.remote() for actor in self._actors])]
        self.hosts = tuple(host for host, _ in places)
        self._seen = seen_by_each(places)
        self.devices = tuple(device for device, _ in self._seen)
        see(self._seen[0][1])

    def start(self, job: CardJob) -> CardProcess:
        """As in Machines."""
        return _RayProcess(self._actors[job.rank - 1], job, self._seen[job.rank][1])


class CardActor:
    """What runs a card's process."""

    def place(self) -> Place:
        """Where it is."""
        return place()

    def open(self, key: bytes) -> Address:
        """Where the replica finds it."""
        self._door = Door(place()[0], key)
        return self._door.address

    def serve(self, gpus: str) -> None:
        """Do what the replica says, with these GPUs in sight, and end when it hangs up."""
        see(gpus)
        control = self._door.accept()
        self._door.close()
        serve(control)
        ray.actor.exit_actor()


class _RayProcess:
    """The process of an actor, as CardProcess has it."""

    def __init__(self, actor: Any, job: CardJob, gpus: str):
        self._actor = actor
        address = ray.get(actor.open.remote(job.key))
        self._served = actor.serve.remote(gpus)
        self.control = connect(address, job.key)
        self.control.send(job)

    def how_it_ended(self, seconds: float) -> str | None:
        """As in CardProcess; Ray's logs say more."""
        ended, _ = ray.wait([self._served], timeout=seconds)
        return "has ended" if ended else None

    def kill(self) -> None:
        """As in CardProcess."""
        ray.kill(self._actor)


def place() -> Place:
    """Where this process is."""
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return ray.util.get_node_ip_address(), gpus[0] if gpus else None


def seen_by_each(places: Sequence[Place]) -> list[tuple[str, str]]:
    """Of each card its device's name, and the numbers of the GPUs that its process is to see: those of all cards of its
    machine, since RCCL reaches another GPU's memory only where the process sees that GPU."""
    there = {host: [gpu for other, gpu in places if other == host and gpu] for host, _ in places}
    return [(f"gpu:{there[host].index(gpu)}" if gpu else "cpu", ",".join(there[host])) for host, gpu in places]


def see(gpus: str) -> None:
    """Have this process see these GPUs, in this order; Ray lets each see its own alone."""
    if gpus:
        os.environ.update(HIP_VISIBLE_DEVICES=gpus, CUDA_VISIBLE_DEVICES=gpus)
