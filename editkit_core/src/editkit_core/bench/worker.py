"""One run of a sweep, in a process of its own: asked by JSON on standard input."""

from __future__ import annotations

import json
import sys
from typing import Any

from editkit_core.bench.plan import Plan
from editkit_core.errors import EditkitError


def main() -> None:
    """Do the run that standard input asks for; the last line of standard output is the answer."""
    asked = json.load(sys.stdin)
    sys.stdout.write("\n" + json.dumps(_answer(asked)) + "\n")


def _answer(asked: dict[str, Any]) -> dict[str, Any]:  # Any: JSON values
    from editkit_core.bench.running import run

    try:
        result = run(Plan.of(asked["plan"]), asked["out"], replies=asked["replies"])
    except EditkitError as error:
        return {"code": error.code, "message": error.message}
    return {"summary": result.summary}


if __name__ == "__main__":
    main()
