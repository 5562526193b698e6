"""A stack kept in a folder, safe against stopped writers, full disks and several writers at once.

Importing this package imports no torch.
"""

from editkit_core.stack.store.doctor import DoctorReport
from editkit_core.stack.store.document import BaseRecord, StackDocument, TensorResult
from editkit_core.stack.store.garbage import GcReport
from editkit_core.stack.store.store import StackStore

__all__ = [
    "BaseRecord",
    "DoctorReport",
    "GcReport",
    "StackDocument",
    "StackStore",
    "TensorResult",
]
