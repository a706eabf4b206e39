"""The command line: a client of the API, so that a command does what a request does.

    app      the commands, and what becomes of an error
    options  what every command takes: --home, --url, --api-key, --json
    client   a connection to a server: one that runs, or one started for this command
    output   tables, JSON, progress bars
    serve, tune, sweep, grade, chat, models, files, jobs, keys, report, …   the commands

Nothing heavy is imported before a command runs: `tunekeeper --help` is answered at once.
"""

from tunekeeper.cli.app import main

__all__ = ["main"]
