"""``python -m ringraft.cli.voter``: what ``bin/ringraft-voter`` starts."""

from ringraft.cli.main import run_command
from ringraft.cli.node import voter

if __name__ == "__main__":
    run_command(voter, "ringraft-voter")
