"""System calls by their C names: new namespaces, mounts, another root, tracing, shared memory, keys."""


def attack(sample, item):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    calls = {
        "unshare": (0x10000000,),
        "mount": (b"none", b"/usr", b"tmpfs", 0, None),
        "chroot": (b"/usr",),
        "setuid": (0,),
        "ptrace": (16, 1, 0, 0),
        "shmget": (0, 4096, 0o1600),
        "memfd_create": (b"x", 0),
        "inotify_init": (),
        "fork": (),
        "vfork": (),
    }
    worked = [name for name, arguments in calls.items() if getattr(libc, name)(*arguments) >= 0]
    numbers = {"keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425}
    numbers |= {"pidfd_open": 434, "clone3": 435}
    worked += [name for name, call in numbers.items() if libc.syscall(call, 1, 0, 0, 0, 0) >= 0]
    return bool(worked)
