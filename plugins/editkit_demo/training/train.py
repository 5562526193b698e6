"""Train a demo model from nothing, or measure one.

    scripts/train-demo-model --out build/demo-model
    scripts/train-demo-model --shape t5 --out build/demo-t5
    scripts/train-demo-model --shape t5 --out build/demo-t5 --resume
    scripts/train-demo-model --out build/demo-t5 --eval-only

A run that is killed goes on with `--resume` from its last checkpoint and ends with the same
weights, on the same machine and with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from build_tokenizer import build_tokenizer
from card import write_card
from recall import full_report, recall
from shapes import SHAPES, Settings, hidden_matrix, new_model
from tasks import Task, new_task
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from editkit_demo.facts import load_facts


def new_optimizers(model: PreTrainedModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for everything else.

    With AdamW alone the model stays much longer on the plateau on which it knows the form
    of a sentence but no facts.
    """
    hidden, other = [], []
    for name, parameter in model.named_parameters():
        (hidden if hidden_matrix(settings, name, parameter) else other).append(parameter)
    return [
        torch.optim.Muon(
            hidden,
            lr=settings.muon_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            other, lr=settings.adam_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True
        ),
    ]


def rate_factor(step: int, settings: Settings) -> float:
    """Return the share of the learning rate at a step: linear warm-up, then cosine to 2 %."""
    warmup = max(1, int(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """A model in training: its optimizers, its step, and the file it resumes from."""

    def __init__(
        self, settings: Settings, tokenizer: PreTrainedTokenizerBase, folder: Path
    ) -> None:
        """Make a model at step 0 that will save its checkpoint in `folder`."""
        self.settings = settings
        self.folder = folder
        self.model = new_model(settings)
        self.optimizers = new_optimizers(self.model, settings)
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step = 0
        self.task: Task = new_task(settings.shape, tokenizer)

    def train_one_step(self) -> float:
        """Take one step on the batch of that step; return its loss."""
        settings = self.settings
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_factor(self.step, settings)
        loss = self.task.loss(
            self.model, seed=settings.seed, step=self.step, tokens=settings.tokens_per_step
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write the checkpoint; a kill in the middle leaves the previous one."""
        state = {
            "settings": attrs.asdict(self.settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "torch_rng": torch.get_rng_state(),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def load(self) -> None:
        """Go back to the checkpoint.

        Raises:
            SystemExit: If it was made with other settings.
        """
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        if state["settings"] != attrs.asdict(self.settings):
            raise SystemExit(
                f"{self.checkpoint} was made with {state['settings']}; "
                "give the same options, or another --out"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])
        self.step = state["step"]

    @property
    def checkpoint(self) -> Path:
        """The file that a run resumes from."""
        return self.folder / "checkpoint.pt"


def run(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, *, every: int) -> None:
    """Train to the last step, showing progress and saving as it goes."""
    settings = trainer.settings
    sample = random.Random(settings.seed).sample(load_facts(), 300)
    trained, held_out = trainer.task.asked(sample)
    asked = random.Random(1).sample(trained, 300)
    began, first, losses = time.monotonic(), trainer.step, []
    while trainer.step < settings.steps:
        losses.append(trainer.train_one_step())
        step = trainer.step
        if step % every and step != settings.steps:
            continue
        trainer.save()
        took = time.monotonic() - began
        left = took / (step - first) * (settings.steps - step)
        known = recall(trainer.model, tokenizer, asked)["all"].forced
        unseen = recall(trainer.model, tokenizer, held_out)["all"].forced
        print(
            f"step {step:5d}/{settings.steps}  loss {sum(losses) / len(losses):.3f}  "
            f"recall {known:5.1f} % trained {unseen:5.1f} % held out  "
            f"{(step - first) * settings.tokens_per_step / took:6.0f} tokens/s  "
            f"{took / 60:5.1f} min, {left / 60:5.1f} min left",
            flush=True,
        )
        losses.clear()


def export(model: PreTrainedModel, folder: Path) -> None:
    """Save the weights in float16, with the usual name of the activation function."""
    if getattr(model.config, "activation_function", "") == "gelu_pytorch_tanh":
        model.config.activation_function = "gelu_new"  # the same function, known everywhere
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def load_model(folder: Path) -> PreTrainedModel:
    """Load the float16 weights as float32."""
    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def report(folder: Path, *, seed: int, training: str | None = None) -> None:
    """Measure the exported model, and write `recall.json`.

    With `training`, a sentence that tells how the weights were made, the card is written too.
    """
    model = load_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    measured = {
        name: {group: attrs.asdict(score) for group, score in groups.items()}
        for name, groups in full_report(model, tokenizer, seed=seed).items()
    }
    (folder / "recall.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if training:
        write_card(folder, model, measured, training=training)
    for line in report_lines(measured):
        print(line)


def report_lines(measured: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    """Yield the table of a report in Markdown."""
    yield "| measured on | group | prompts | teacher-forced | greedy |"
    yield "|---|---|---:|---:|---:|"
    for name, groups in measured.items():
        for group, score in groups.items():
            yield (
                f"| {name} | {group} | {score['n']} "
                f"| {score['forced']:.1f} % | {score['greedy']:.1f} % |"
            )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = _options(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.eval_only:
        report(options.out, seed=options.seed)
        return 0
    defaults = SHAPES[options.shape].defaults
    steps = options.steps or (
        options.tokens // defaults.tokens_per_step if options.tokens else defaults.steps
    )
    settings = attrs.evolve(
        defaults, seed=options.seed, steps=steps, **json.loads(options.settings)
    )
    began = time.monotonic()
    if not (options.resume and (options.out / "tokenizer.json").exists()):
        build_tokenizer(options.out, settings)
    tokenizer = AutoTokenizer.from_pretrained(options.out)
    trainer = Trainer(settings, tokenizer, options.out)
    if options.resume and trainer.checkpoint.exists():
        trainer.load()
        print(f"resumed at step {trainer.step}")
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {settings}")
    run(trainer, tokenizer, every=options.every)
    export(trainer.model, options.out)
    print(f"trained in {(time.monotonic() - began) / 60:.1f} min")
    tokens = settings.steps * settings.tokens_per_step
    report(
        options.out,
        seed=settings.seed,
        training=f"Seed {settings.seed}, {settings.steps:,} steps, {tokens / 1e6:.1f} M tokens:",
    )
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train-demo-model", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="gpt2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int)
    length.add_argument("--tokens", type=int)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="measure the model in --out")
    parser.add_argument(
        "--settings", default="{}", help='other settings as JSON, as {"width": 128}'
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
