"""``python -m ringraft.cli.worker``: what ``bin/ringraft-worker`` starts."""

from ringraft.cli.main import run_command
from ringraft.cli.node import worker

if __name__ == "__main__":
    run_command(worker, "ringraft-worker")
