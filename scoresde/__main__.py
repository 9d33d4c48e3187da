"""``python -m scoresde`` is ``scoresde``."""

from .cli import main

if __name__ == "__main__":
    main()
