"""Every error editkit raises, in one tree.

EditkitError
├── RequestError            what was asked for            EK-R..
├── ModelError              the model or its tokenizer    EK-M..
├── PluginError             an installed distribution     EK-G..   exit 3
├── ParamsError             a method's parameters         EK-H..
├── StatisticsError         key statistics                EK-S..
├── TrainingError           training an editor            EK-T..
├── EditError               computing the edit            EK-E..
├── PatchError              a patch file or its base      EK-P..   exit 4, or as below
├── StackError              patches on top of each other  EK-K..   exit 1, or as below
├── MeasureError            measuring an edit             EK-V..
└── FileError               reading and writing files     EK-F..

Exit codes: 1 the user's mistake, 2 usage, 3 a broken plugin, 4 a patch refused, 5 a conflict, 6 the
patch was made for another base, 7 a file is corrupt.

A message says what happened, the value seen, and what to do next. Facts are attributes. ``code`` is
stable and has a page in ``docs/errors/``. This module imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` when ``word`` is close to a known name, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


class EditkitError(Exception):
    """The base of all errors; ``facts`` are also set as attributes.

    Args:
        message: What happened, the value seen, and the remedy.
        **facts: Values a program may want to read, set as attributes of the error.
    """

    code: ClassVar[str] = "EK-000"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


# -- requests ---------------------------------------------------------------------------------


class RequestError(EditkitError):
    """A request that cannot be edited as it stands."""

    code = "EK-R00"


class SubjectNotInPromptError(RequestError):
    """The subject does not occur in the prompt."""

    code = "EK-R01"


class EmptyTargetError(RequestError):
    """A target is empty or has no token of its own."""

    code = "EK-R02"


class PromptTooLongError(RequestError):
    """Prompt and target do not fit the model's context."""

    code = "EK-R03"


class RequestFileError(RequestError):
    """A request file that cannot be read as requests."""

    code = "EK-R04"


class InvalidRequestError(RequestError):
    """A request with an empty prompt, two slots, or a value of the wrong type."""

    code = "EK-R05"


# -- models -----------------------------------------------------------------------------------


class ModelError(EditkitError):
    """The model or its tokenizer cannot be used as asked."""

    code = "EK-M00"


class ModelNotFoundError(ModelError):
    """No model under this name, folder or packaged id."""

    code = "EK-M01"


class UnknownFamilyError(ModelError):
    """No registered family fits the module tree."""

    code = "EK-M02"


class LayerOutOfRangeError(ModelError):
    """A layer number the model does not have."""

    code = "EK-M03"


class TokenizerWithoutOffsetsError(ModelError):
    """The tokenizer cannot map characters to tokens."""

    code = "EK-M04"


class UnsupportedModelError(ModelError):
    """The method does not apply to this kind of model."""

    code = "EK-M05"


class ModuleNotFoundInModelError(ModelError):
    """A site names a module or parameter that the model does not have."""

    code = "EK-M06"


class UnsupportedModuleError(ModelError):
    """A weight whose orientation editkit does not know."""

    code = "EK-M07"


# -- plugins ----------------------------------------------------------------------------------


class PluginError(EditkitError):
    """An installed distribution that cannot be used."""

    code = "EK-G00"
    exit_code = 3


class UnknownMethodError(PluginError):
    """No installed method has this id."""

    code = "EK-G01"
    exit_code = 1


class BrokenPluginError(PluginError):
    """A plugin that fails to import or to answer."""

    code = "EK-G02"


class DuplicateMethodError(PluginError):
    """Two distributions claim one method id."""

    code = "EK-G03"


class IncompatiblePluginError(PluginError):
    """A plugin made for another version of the core."""

    code = "EK-G04"


class InvalidHookError(PluginError):
    """A hook implementation the session refuses."""

    code = "EK-G05"


# -- parameters -------------------------------------------------------------------------------


class ParamsError(EditkitError):
    """A method's parameters cannot be used."""

    code = "EK-H00"


class UnknownParameterError(ParamsError):
    """A parameter name that the method does not have."""

    code = "EK-H01"


class InvalidParameterError(ParamsError):
    """A parameter value of the wrong type or outside its range."""

    code = "EK-H02"


class ParamsFileError(ParamsError):
    """A parameter file that cannot be read."""

    code = "EK-H03"


class UnknownPresetError(ParamsError):
    """No preset of that name."""

    code = "EK-H04"


# -- statistics -------------------------------------------------------------------------------


class StatisticsError(EditkitError):
    """Key statistics are missing or do not fit."""

    code = "EK-S00"


class StatisticsMissingError(StatisticsError):
    """The method needs key statistics that have not been made."""

    code = "EK-S01"


class StatisticsMismatchError(StatisticsError):
    """Statistics of another base, layer or shape."""

    code = "EK-S02"


class IllConditionedError(StatisticsError):
    """A system that cannot be solved as it stands."""

    code = "EK-S03"


class CorpusError(StatisticsError):
    """A text corpus that is missing, empty or too short."""

    code = "EK-S04"


class StatisticsOverlapError(StatisticsError):
    """Statistics to be merged that count the same text twice."""

    code = "EK-S05"


# -- training ---------------------------------------------------------------------------------


class TrainingError(EditkitError):
    """An editor cannot be trained as asked."""

    code = "EK-T00"


class TrainingDivergedError(TrainingError):
    """The loss or a gradient became NaN or infinite."""

    code = "EK-T01"


class CheckpointError(TrainingError):
    """A training checkpoint that is damaged or of another run."""

    code = "EK-T02"


class EditorMissingError(TrainingError):
    """The method edits with a trained editor, and none that it can use was given."""

    code = "EK-T03"


# -- editing ----------------------------------------------------------------------------------


class EditError(EditkitError):
    """The edit itself could not be computed."""

    code = "EK-E00"


class NonFiniteEditError(EditError):
    """NaN or infinity appeared while computing the edit."""

    code = "EK-E01"


class DegenerateKeyError(EditError):
    """The key is (almost) orthogonal to its own solve direction."""

    code = "EK-E02"


class DeltaTooLargeError(EditError):
    """The change is larger than the guard allows."""

    code = "EK-E03"


# -- patches ----------------------------------------------------------------------------------


class PatchError(EditkitError):
    """A patch that is refused."""

    code = "EK-P00"
    exit_code = 4


class PatchFormatError(PatchError):
    """Bytes that are not a well-formed patch file."""

    code = "EK-P01"
    exit_code = 7


class PatchDigestError(PatchError):
    """The content does not match the digest in the header."""

    code = "EK-P02"
    exit_code = 7


class BaseMismatchError(PatchError):
    """The patch was made for another base."""

    code = "EK-P03"
    exit_code = 6


class UnknownPatchKindError(PatchError):
    """An entry kind that nothing installed can apply."""

    code = "EK-P04"


class PatchShapeError(PatchError):
    """An entry does not fit the module it names."""

    code = "EK-P05"


class PatchVersionError(PatchError):
    """A patch file of a format version this core does not read."""

    code = "EK-P06"


class ApplyError(PatchError):
    """The patch cannot be realised on this model in this mode."""

    code = "EK-P07"


class RevertError(PatchError):
    """The weights were changed from outside while a patch was applied."""

    code = "EK-P08"


class ExportError(PatchError):
    """The patch cannot be expressed in the format asked for."""

    code = "EK-P09"


# -- stacks -----------------------------------------------------------------------------------


class StackError(EditkitError):
    """A stack of patches cannot be changed as asked."""

    code = "EK-K00"


class UnknownEntryError(StackError):
    """The stack has no such patch."""

    code = "EK-K01"


class StackConflictError(StackError):
    """Patches that contradict or disturb one another."""

    code = "EK-K02"
    exit_code = 5


class StaleEntryError(StackError):
    """A patch would stand on others than those it was computed on."""

    code = "EK-K03"
    exit_code = 5


class StackLockedError(StackError):
    """Another process is writing to the stack's folder."""

    code = "EK-K04"
    exit_code = 5


class StackDamagedError(StackError):
    """A stack's folder holds something else than it says."""

    code = "EK-K05"
    exit_code = 7


# -- measuring --------------------------------------------------------------------------------


class MeasureError(EditkitError):
    """An edit cannot be measured as asked."""

    code = "EK-V00"


class JudgeError(MeasureError):
    """The judge of generated answers cannot be reached or gives no verdict."""

    code = "EK-V01"


class UnknownMetricError(MeasureError):
    """No registered metric has this name."""

    code = "EK-V02"


# -- files ------------------------------------------------------------------------------------


class FileError(EditkitError):
    """A file could not be read or written."""

    code = "EK-F00"


class OutputExistsError(FileError):
    """The output exists and ``--force`` was not given."""

    code = "EK-F01"


class WriteFailedError(FileError):
    """Writing failed; nothing half-written was left."""

    code = "EK-F02"


class InputNotFoundError(FileError):
    """An input file or folder does not exist or cannot be read."""

    code = "EK-F03"


class MissingExtraError(FileError):
    """An optional dependency is needed and not installed."""

    code = "EK-F04"
