from __future__ import annotations

import copy
import pickle
import re
from collections import Counter

import pytest

from editkit_core import errors
from editkit_core.errors import EditkitError, did_you_mean

TREE: list[type[EditkitError]] = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, EditkitError) and cls is not EditkitError
]

EXIT_CODES = {  # those that differ from their branch's
    errors.UnknownMethodError: 1,  # a wrong id is the user's mistake
    errors.StackConflictError: 5,
    errors.StaleEntryError: 5,
    errors.StackLockedError: 5,
    errors.BaseMismatchError: 6,
    errors.PatchFormatError: 7,
    errors.PatchDigestError: 7,
    errors.StackDamagedError: 7,
}


def test_every_code_is_unique() -> None:
    counted = Counter(cls.code for cls in (*TREE, EditkitError))
    assert [code for code, n in counted.items() if n > 1] == []


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_an_error_has_its_own_code_of_its_branch(cls: type[EditkitError]) -> None:
    assert "code" in vars(cls)
    assert re.fullmatch(r"EK-[A-Z]\d\d", cls.code)
    branch = cls.__mro__[cls.__mro__.index(EditkitError) - 1]
    assert cls.code[:4] == branch.code[:4]
    assert (cls.code[4:] == "00") == (cls is branch)
    assert cls.__name__.endswith("Error")
    assert cls.__doc__


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_the_exit_code_says_what_is_the_matter(cls: type[EditkitError]) -> None:
    by_branch = {"G": 3, "P": 4}.get(cls.code[3], 1)
    assert cls.exit_code == EXIT_CODES.get(cls, by_branch)


def test_the_tree_at_the_top_names_every_branch() -> None:
    assert errors.__doc__ is not None
    for cls in TREE:
        if cls.__bases__ == (EditkitError,):
            assert re.search(rf"[├└]── {cls.__name__} .*{cls.code[:4]}\.\.", errors.__doc__)


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_an_error_survives_pickling_and_copying(cls: type[EditkitError]) -> None:
    error = cls("it broke", found=3, site="h.0")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == str(error) == f"[{cls.code}] it broke"
        assert twin.facts == error.facts == {"found": 3, "site": "h.0"}
        assert (vars(twin)["found"], vars(twin)["site"]) == (3, "h.0")


def test_the_closest_known_word_is_suggested() -> None:
    assert did_you_mean("v_stps", ["v_steps", "layer"]) == " Did you mean 'v_steps'?"
    assert did_you_mean("zzz", ["v_steps"]) == ""
    assert did_you_mean("x", []) == ""
