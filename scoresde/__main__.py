"""``python -m scoresde`` is ``scoresde``."""

from .core.signals import whole_process

__all__ = ["main"]


def main() -> None:
    """Run the command line as the only thing that this process does."""
    with whole_process():
        from .cli import main

        main()


if __name__ == "__main__":
    main()
