"""``python -m ringraft``."""

from ringraft.cli.main import main

if __name__ == "__main__":
    main()
