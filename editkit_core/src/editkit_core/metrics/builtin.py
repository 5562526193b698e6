"""The core's own metrics, registered the way a plugin registers its."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editkit_core.markers import hookimpl

if TYPE_CHECKING:
    from editkit_core.hookspecs import Register


@hookimpl
def editkit_register_metrics(register: Register) -> None:
    """Register every metric of the core."""
    from editkit_core.metrics import contrastive, harness, probes, sampling, specificity, whole

    register("reliability", probes.reliability)
    register("generalization", probes.generalization)
    register("locality", probes.locality)
    register("portability", probes.portability)
    register("same_subject_specificity", specificity.same_subject_specificity)
    register("near_name_locality", specificity.near_name_locality)
    register("efficacy_score", contrastive.efficacy_score)
    register("efficacy_magnitude", contrastive.efficacy_magnitude)
    register("paraphrase_score", contrastive.paraphrase_score)
    register("paraphrase_magnitude", contrastive.paraphrase_magnitude)
    register("neighborhood_score", contrastive.neighborhood_score)
    register("neighborhood_magnitude", contrastive.neighborhood_magnitude)
    register("counterfact_score", contrastive.counterfact_score)
    register("fluency", sampling.fluency)
    register("generation_consistency", sampling.generation_consistency)
    register("perplexity_drift", whole.perplexity_drift)
    register("efficiency_seconds", whole.efficiency_seconds)
    register("efficiency_host_bytes", whole.efficiency_host_bytes)
    register("efficiency_device_bytes", whole.efficiency_device_bytes)
    register("harness", harness.harness)
