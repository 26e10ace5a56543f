"""``python -m vlad`` is the ``vlad`` command."""

from vlad.cli import main

if __name__ == "__main__":
    main()
