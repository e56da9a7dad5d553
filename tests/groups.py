"""Groups of CPUs whose members are threads of one process, for tests of what each of them does."""

import threading

from rocforge.device.distributed import HostGroup

SECONDS = 20


def run_together(size, work):
    """What `work(group)` gives at each member, in threads; raises what it raises at the first of them.

    A member that fails closes its connections, as the end of its process would.
    """
    groups = [HostGroup(rank, ["cpu"] * size, (), b"key") for rank in range(size)]
    doors = [group.door.address for group in groups[1:]]
    results, errors = [None] * size, [None] * size

    def run(group):
        try:
            group.connect(doors)
            results[group.rank] = work(group)
        except Exception as error:
            errors[group.rank] = error
        finally:
            group.close()

    threads = [threading.Thread(target=run, args=(group,), daemon=True) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), f"a member still waits after {SECONDS} s"
    for error in errors:
        if error is not None:
            raise error
    return results
