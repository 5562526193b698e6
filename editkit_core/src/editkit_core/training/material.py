"""What a run trains on and validates on, and a warning where the two share subjects."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence

import attrs

from editkit_core.data.dataset import DataSet
from editkit_core.errors import TrainingError
from editkit_core.patch.header import JsonValue
from editkit_core.training.data import overlap, split_by_subject
from editkit_core.training.options import TrainingOptions
from editkit_core.training.validation import chosen
from editkit_core.types import EditRequest

__all__ = ["MOST_NAMED", "Material", "requests_digest"]

MOST_NAMED = 20
_TOLD = logging.getLogger("editkit")


@attrs.frozen(kw_only=True)
class Material:
    """What is trained on and what is validated on.

    Attributes:
        whole: The data set as it was given.
        training: What is trained on.
        validation: What a validation edits, at most so many as it may.
        split: How these were set apart, as plain JSON values.
        shared: Subjects that are trained on and validated on.
    """

    whole: DataSet
    training: DataSet
    validation: tuple[EditRequest, ...]
    split: Mapping[str, JsonValue]
    shared: tuple[str, ...]

    @classmethod
    def of(cls, dataset: DataSet, options: TrainingOptions, seed: int) -> Material:
        """Set validation requests apart, or take those that the options bring.

        Raises:
            TrainingError: Nothing is left to train on.
        """
        if not dataset.requests:
            raise TrainingError(
                f"There is nothing to train on: {dataset.source} has no requests. Check the data "
                "set with `editkit datasets`."
            )
        if options.validation is None:
            training, held = split_by_subject(dataset, options.validation_share, seed)
            how = {"how": "by subject", "share": options.validation_share}
        else:
            training, held = dataset, options.validation
            how = {"how": "given", "source": held.source}
        if not training.requests:
            raise TrainingError(
                f"All {len(dataset.requests)} requests were set apart to validate on. Give more "
                "of them, or a smaller --validation-share."
            )
        requests = chosen(held.requests, options.validation_limit, seed)
        split = {**how, "requests": len(requests), "digest": requests_digest(requests)}
        return cls(
            whole=dataset,
            training=training,
            validation=requests,
            split=split,
            shared=overlap(training, held),
        )

    def tell(self) -> None:
        """Say by name which subjects are trained on and validated on, if there are any."""
        if not self.shared:
            return
        named = ", ".join(self.shared[:MOST_NAMED])
        more = len(self.shared) - MOST_NAMED
        _TOLD.warning(
            "%d subjects are in the training set and in the validation set: %s%s. Their scores "
            "say little about subjects that were never trained on.",
            len(self.shared),
            named,
            f" and {more} more" if more > 0 else "",
        )


def requests_digest(requests: Sequence[EditRequest]) -> str:
    """Return the SHA-256 of requests with all their probes, in order."""
    plain = [attrs.asdict(request) for request in requests]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
