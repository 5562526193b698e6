"""Reading requests and data sets."""

from editkit_core.data.dataset import DataSet, Skipped
from editkit_core.data.loading import load_dataset

__all__ = ["DataSet", "Skipped", "load_dataset"]
