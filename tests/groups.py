"""Groups of CPUs whose members are threads of one process, for tests of what each of them does."""

import threading
from multiprocessing import Pipe

from rocforge.device.distributed import HostGroup

SECONDS = 20


def members(size):
    """The groups that the members of one have."""
    links = [{} for _ in range(size)]
    for rank in range(size):
        for other in range(rank):
            links[rank][other], links[other][rank] = Pipe()
    return [HostGroup(rank, ["cpu"] * size, links[rank]) for rank in range(size)]


def run_together(size, work):
    """What `work(group)` gives at each member, in threads; raises what it raises at the first of them.

    A member that fails closes its connections, as the end of its process would.
    """
    results, errors = [None] * size, [None] * size

    def run(group):
        try:
            results[group.rank] = work(group)
        except Exception as error:
            errors[group.rank] = error
            for link in group._links.values():
                link.close()

    threads = [threading.Thread(target=run, args=(group,), daemon=True) for group in members(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), f"a member still waits after {SECONDS} s"
    for error in errors:
        if error is not None:
            raise error
    return results
