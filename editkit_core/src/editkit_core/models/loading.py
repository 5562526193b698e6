"""From a name to a Hugging Face model and tokenizer: packaged, in a local folder, or on the hub.

Only safetensors are read and no code of a checkpoint is run. A checkpoint that lacks tensors of its
own architecture is refused: transformers would fill them with random numbers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging

from editkit_core.errors import (
    InvalidParameterError,
    MissingExtraError,
    ModelNotFoundError,
    UnsupportedModelError,
    did_you_mean,
)

PACKAGED_PREFIX = "editkit:"
_HUB_TIMEOUT_S = 10.0


@attrs.frozen(eq=False, kw_only=True)
class LoadedModel:
    """What was loaded.

    Attributes:
        model: The Hugging Face model with its head.
        tokenizer: Its tokenizer.
        folder: The folder on this machine that holds the checkpoint's files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path


def load(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: object = None,
    revision: str | None = None,
    packaged: Mapping[str, Path] | None = None,
) -> LoadedModel:
    """Load a model; see `EditableModel.from_pretrained` for the arguments.

    Raises:
        ModelNotFoundError: Nothing under this name, or its files cannot be read.
        UnsupportedModelError: It is no language model transformers knows, or it needs its own code.
        InvalidParameterError: An unknown dtype or device, or both ``device`` and ``device_map``.
        MissingExtraError: ``device_map`` without accelerate.
    """
    if device is not None and device_map is not None:
        raise InvalidParameterError(
            f"device={device!r} and device_map={device_map!r} contradict each other. Give one.",
            device=device,
            device_map=device_map,
        )
    target = _torch_device(device)
    asked = _torch_dtype(dtype, on_cpu=device_map is None and target.type == "cpu")
    place = _find(name, revision, dict(packaged or {}))
    with _quiet_transformers(), _clear_errors(name):
        config = AutoConfig.from_pretrained(place.files, **place.options)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        spread = {} if device_map is None else {"device_map": device_map}
        model, info = auto.from_pretrained(
            place.files,
            dtype=asked,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that _check_complete can name them
            **spread,
            **place.options,
        )
        tokenizer = _tokenizer(place)
    _check_complete(name, info)
    if device_map is None:
        model.to(target)
    return LoadedModel(model=model, tokenizer=tokenizer, folder=place.folder)


def find_folder(
    name: str, *, revision: str | None = None, packaged: Mapping[str, Path] | None = None
) -> Path:
    """Return the folder with a model's files; a hub model is fetched into its cache first.

    Raises:
        ModelNotFoundError: Nothing under this name, or its files cannot be fetched.
    """
    place = _find(name, revision, dict(packaged or {}))
    if place.files == str(place.folder):
        return place.folder
    from huggingface_hub import snapshot_download

    with _clear_errors(name):
        offline = bool(place.options["local_files_only"])
        return Path(snapshot_download(name, revision=revision, local_files_only=offline))


@attrs.frozen(eq=False, kw_only=True)
class _Place:
    """Where transformers finds the files: a folder or a hub id, and the arguments that go along."""

    files: str
    folder: Path
    options: dict[str, Any]  # Any: the keyword arguments of from_pretrained


def _find(name: str, revision: str | None, packaged: Mapping[str, Path]) -> _Place:
    if name.startswith(PACKAGED_PREFIX):
        return _local(name, _packaged_folder(name, packaged))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _local(name, folder)
    if _looks_like_a_path(name):
        raise ModelNotFoundError(
            f"There is no model folder {name!r} (looked in {folder.absolute()}). Check the path; "
            "a folder saved with save_pretrained has a config.json.",
            name=name,
        )
    return _on_the_hub(name, revision)


def _packaged_folder(name: str, packaged: Mapping[str, Path]) -> Path:
    key = name[len(PACKAGED_PREFIX) :]
    if key in packaged:
        return Path(packaged[key])
    known = ", ".join(f"{PACKAGED_PREFIX}{other}" for other in sorted(packaged)) or "none"
    raise ModelNotFoundError(
        f"No packaged model {name!r} is installed (installed: {known})."
        f"{did_you_mean(key, packaged)} Install the distribution that brings it: "
        f"pip install editkit-{key or 'demo'}.",
        name=name,
        installed=tuple(sorted(packaged)),
    )


def _local(name: str, folder: Path) -> _Place:
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"The folder {str(folder)!r} has no config.json, so it is no model. Give a folder "
            "saved with save_pretrained, with its tokenizer.",
            name=name,
        )
    options = {"local_files_only": True, "trust_remote_code": False}
    return _Place(files=str(folder), folder=folder, options=options)


def _looks_like_a_path(name: str) -> bool:
    return (
        not name
        or name.startswith((".", "~", os.sep))
        or "\\" in name
        or name.count("/") > 1
        or Path(name).is_absolute()
    )


def _on_the_hub(name: str, revision: str | None) -> _Place:
    """Find a hub model's config, so that a wrong name or a missing network is told at once.

    transformers alone would retry every one of its files for half a minute when offline.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline: Exception | None = None
    try:
        url = hf_hub_url(name, "config.json", revision=revision)
        get_hf_file_metadata(url, timeout=_HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise _not_found(name, "it is no folder, and no name a hub model can have") from error
    except GatedRepoError as error:
        raise _not_found(name, "the hub wants you to accept its terms and log in first") from error
    except RepositoryNotFoundError as error:
        raise _not_found(name, "it is no folder, and the hub has no such public model") from error
    except RevisionNotFoundError as error:
        raise _not_found(name, f"the hub has it, but not revision {revision!r}") from error
    except OfflineModeIsEnabled as error:
        offline = error
    except EntryNotFoundError as error:
        raise _not_found(name, "the hub has it, but without a config.json") from error
    except Exception as error:  # the hub's HTTP client, and so its errors, differ by version
        offline = error
    try:
        config = hf_hub_download(
            name, "config.json", revision=revision, local_files_only=offline is not None
        )
    except OSError as error:
        why = f"the hub cannot be reached ({offline})" if offline else str(error)
        raise _not_found(name, f"it is no folder, it is not in the cache, and {why}") from error
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    options["local_files_only"] = offline is not None
    return _Place(files=name, folder=Path(config).parent, options=options)


def _not_found(name: str, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"The model {name!r} cannot be loaded: {why}. Give a folder saved with save_pretrained, "
        f"'{PACKAGED_PREFIX}demo' for the packaged model, or a hub id such as 'owner/name'.",
        name=name,
        why=why,
    )


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """Turn what transformers raises into errors that say what to do."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"Loading {name!r} this way needs another package: {_first_line(error)}. Install it.",
            name=name,
        ) from error
    except (OSError, SafetensorError) as error:
        raise _not_found(name, _first_line(error)) from error
    except (ValueError, KeyError) as error:
        if "accelerate" in str(error):
            raise MissingExtraError(
                "device_map needs the package accelerate. Install it with pip install accelerate.",
                name=name,
            ) from error
        raise UnsupportedModelError(
            f"transformers cannot load {name!r} as a language model: {_first_line(error)}. editkit "
            "loads causal and encoder-decoder language models and runs no code of a checkpoint.",
            name=name,
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _tokenizer(place: _Place) -> PreTrainedTokenizerBase:
    """Load the tokenizer as its files describe it.

    AutoTokenizer lets the architecture overrule them: a Qwen2 model whose ``tokenizer.json`` splits
    text otherwise than Qwen's own would get other tokens than it was trained with.
    """
    declared = get_tokenizer_config(place.files, **place.options).get("tokenizer_class")
    if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return PreTrainedTokenizerFast.from_pretrained(place.files, **place.options)
    return AutoTokenizer.from_pretrained(place.files, **place.options)


def _check_complete(name: str, info: Mapping[str, Any]) -> None:
    # Any: transformers' own record
    lacking = sorted(info.get("missing_keys", ()))
    misshapen = sorted(str(key[0]) for key in info.get("mismatched_keys", ()))
    for what, names in (("lacks", lacking), ("has in another shape", misshapen)):
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise _not_found(
                name, f"its checkpoint {what} {len(names)} tensors of its architecture ({shown})"
            )


def _torch_device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device if device is not None else "cpu")
    except (RuntimeError, TypeError) as error:
        raise InvalidParameterError(
            f"There is no device {device!r}: {_first_line(error)}. Use 'cpu', 'cuda', 'cuda:1' …",
            device=device,
        ) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InvalidParameterError(
            f"The device {device!r} was asked for, but torch sees no CUDA device. Use 'cpu', or "
            "install a torch built for your GPU.",
            device=device,
        )
    return found


def _torch_dtype(dtype: str | torch.dtype | None, *, on_cpu: bool) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if on_cpu else "auto"
    if dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InvalidParameterError(
            f"The dtype {dtype!r} is not one a model can be loaded in. Use 'float32', 'bfloat16', "
            "'float16', or 'auto' for the checkpoint's own.",
            dtype=dtype,
        )
    return found


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' load report, progress bar and warnings; leave the hub's bars alone."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

    hub_bars = not are_progress_bars_disabled()
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    if hub_bars:
        enable_progress_bars()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
