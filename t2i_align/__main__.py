"""``python -m t2i_align`` is the ``t2i-align`` command."""

from t2i_align.cli import main

if __name__ == "__main__":
    main()
