"""The formats the core brings, in the order in which a bare path is compared with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from editkit_core.data.format import DataFormat
from editkit_core.data.formats.counterfact import counterfact
from editkit_core.data.formats.knowedit import knowedit
from editkit_core.data.formats.known_facts import known_1000
from editkit_core.data.formats.mquake import mquake
from editkit_core.data.formats.pararel import ParaRel
from editkit_core.data.formats.plain import plain
from editkit_core.data.formats.zsre import zsre

BUILTIN_FORMATS: Mapping[str, Callable[[], DataFormat]] = MappingProxyType(
    {
        "counterfact": counterfact,
        "zsre": zsre,
        "mquake": mquake,
        "pararel": ParaRel,
        "known_1000": known_1000,
        "knowedit": knowedit,
        "requests": plain,
    }
)
