"""Tests with the real lm-evaluation-harness, collected only where it is installed.

It is an extra of 40 distributions and 0.6 GB that slows every import of transformers by half a
second, so the development environment leaves it out:

    pip install -e "editkit_core[harness]" && pytest tests/harness
"""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("lm_eval") else ["test_*.py"]
