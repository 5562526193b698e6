"""Judges: who decides whether a generated text gives the answer.

A judge is any callable that takes cases and returns verdicts. `EndpointJudge` asks a language model
behind an OpenAI-compatible endpoint.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import attrs

from editkit_core.errors import JudgeError

__all__ = ["Case", "EndpointJudge", "Judge", "one_by_one"]


@attrs.frozen
class Case:
    """What a judge decides about.

    Attributes:
        prompt: What the model was asked.
        answers: The accepted answers; for locality what the model said before the edit.
        text: What the model said.
    """

    prompt: str
    answers: tuple[str, ...]
    text: str


Judge: TypeAlias = Callable[[Sequence[Case]], Sequence[bool]]
"""Returns for each case, in order, whether the text gives one of the answers."""

_VERDICT = re.compile(r"\b(INCORRECT|CORRECT)\b")
_INSTRUCTION = """You grade answers. Compare the predicted answer with the accepted answers.
It is CORRECT if it gives one of them, in any wording and with any detail that does not contradict
it. It is INCORRECT if it gives something else, contradicts itself, or gives no answer.
Reply with one word: CORRECT or INCORRECT."""
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


def one_by_one(decide: Callable[[Case], bool]) -> Judge:
    """Return a judge that calls ``decide`` for each case."""
    return lambda cases: [decide(case) for case in cases]


@attrs.define(kw_only=True, eq=False)
class EndpointJudge:
    """Asks a model behind an OpenAI-compatible endpoint, at temperature 0.

    Equal cases are asked once. The instruction is one of ours: a grade of one word.

    Attributes:
        url: The endpoint's base, for example ``http://localhost:8000/v1``.
        model: The model's name there.
        api_key: Sent as a bearer token; None sends none.
        timeout_s: Seconds to wait for a reply.
        attempts: How often to ask when the endpoint is busy or unreachable.
        parallel: How many cases to ask at once.
        pause_s: Seconds before the second attempt; each further one waits twice as long.
    """

    url: str
    model: str
    api_key: str | None = attrs.field(default=None, repr=False)
    timeout_s: float = 60.0
    attempts: int = 4
    parallel: int = 8
    pause_s: float = 1.0
    _known: dict[Case, bool] = attrs.field(factory=dict, init=False, repr=False)

    def __call__(self, cases: Sequence[Case]) -> list[bool]:
        """Return the verdicts, in order.

        Raises:
            JudgeError: The endpoint cannot be reached, refuses, or replies without a verdict.
        """
        new = [case for case in dict.fromkeys(cases) if case not in self._known]
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            self._known.update(zip(new, pool.map(self._ask, new), strict=True))
        return [self._known[case] for case in cases]

    def _ask(self, case: Case) -> bool:
        said = self._reply(case)
        verdicts = set(_VERDICT.findall(said.upper()))
        if len(verdicts) != 1:
            raise JudgeError(
                f"The judge {self.model} said {said[:80]!r} of {case.text[:60]!r}, which is "
                "neither CORRECT nor INCORRECT. Use a model that follows instructions.",
                model=self.model,
            )
        return verdicts == {"CORRECT"}

    def _reply(self, case: Case) -> str:
        request = self._request(case)
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return _content(json.load(response))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
                if error.code not in _TRANSIENT:
                    break
            except (OSError, ValueError, LookupError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise JudgeError(
            f"The judge at {self.url} did not answer: {reason}. Check address, key and model "
            f"({self.model}).",
            url=self.url,
        )

    def _request(self, case: Case) -> urllib.request.Request:
        asked = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": 8,
            "messages": [
                {"role": "system", "content": _INSTRUCTION},
                {"role": "user", "content": _question(case)},
            ],
        }
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(asked).encode(), headers
        )


def _question(case: Case) -> str:
    accepted = "\n".join(f"- {answer}" for answer in case.answers)
    return f"Prompt: {case.prompt}\nAccepted answers:\n{accepted}\nPredicted answer: {case.text}"


def _content(reply: Any) -> str:  # Any: JSON values
    return str(reply["choices"][0]["message"]["content"])
