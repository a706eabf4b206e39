"""Start another program, by every road."""


def attack(sample, item):
    import os
    import subprocess
    import sys

    started = False
    for command in (["/bin/sh", "-c", "exit 7"], [sys.executable, "-c", "raise SystemExit(7)"]):
        try:
            started = subprocess.run(command).returncode == 7 or started
        except Exception:
            pass
        try:
            started = (
                os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(command[0], command, {}), 0)[1]) == 7 or started
            )
        except Exception:
            pass
    return started
