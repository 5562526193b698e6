"""The method ``nudger``, which trains: the editor of `training_toys` as a plugin would bring it."""

from __future__ import annotations

import attrs
import torch
from training_toys import METHOD, Nudger

from editkit_core import MethodInfo, hookimpl
from editkit_core.params import unstructure
from editkit_core.patch import LowRankEntry, Patch
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.training import Schedule, train

PRESETS = """
tiny:
  match: {family: gpt2}
  source: made for the tests
  params: {steps: 60}
"""


@attrs.frozen(kw_only=True)
class Params:
    """Parameters of the method."""

    lr: float = 0.05
    steps: int = 12
    accumulate: int = 2
    alpha: float = 1.0


@hookimpl
def editkit_method():
    return MethodInfo(
        name="nudger",
        title="Adds what it learned to add",
        paper="none",
        api=1,
        emits=("weight.low_rank/1",),
        families=("gpt2",),
        params=lambda: Params,
        presets=lambda: PRESETS,
        trains=True,
    )


@hookimpl
def editkit_locate(model):
    return (model.site(2),)


@hookimpl
def editkit_train(model, dataset, params, context):
    site = model.site(2)
    learner = Nudger(model, lr=params.lr)
    schedule = Schedule(
        steps=params.steps, batch=2, accumulate=params.accumulate, clip=1.0, validate_every=20
    )
    return train(
        learner,
        dataset,
        schedule,
        model=model,
        context=context,
        method=METHOD,
        params=unstructure(params),
        base=base_fingerprint(model, [site.parameter]),
        retarget="relation",
    ).artifact


@hookimpl
def editkit_compute_delta(model, requests, sites, params, context):
    (site,) = sites
    editor = context.editor
    learned = torch.from_numpy(editor.tensors["map"].copy())
    table = model.parameter(f"{model.family.embedding}.weight").detach()
    entries = []
    for request in requests:
        key = _key(model, site, request.text)
        target = model.tokenizer(f" {request.target_new}")["input_ids"][0]
        added = params.alpha * (learned @ table[target])
        entries.append(LowRankEntry(site=site, u=added[:, None], v=(key / key.dot(key))[None, :]))
    return Patch.from_parts(
        entries=entries,
        method=METHOD,
        base=base_fingerprint(model, [site.parameter]),
        edits=requests,
        params=unstructure(params),
        seed=context.seed,
        environment={},
    )


def _key(model, site, prompt):
    """Return what the weight reads at the prompt's last token."""
    seen = []
    hook = model.module(site.module).register_forward_pre_hook(lambda _m, args: seen.append(args))
    try:
        with torch.no_grad():
            model.model(torch.tensor([model.tokenizer(prompt)["input_ids"]]))
    finally:
        hook.remove()
    return seen[0][0][0, -1]
