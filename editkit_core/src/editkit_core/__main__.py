"""``python -m editkit_core`` is the command line; ``accelerate launch -m`` starts it so."""

from __future__ import annotations

from editkit_core.cli import main

if __name__ == "__main__":
    main()
