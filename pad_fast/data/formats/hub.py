"""Distilled sets on the Hugging Face Hub: a data set repository holds the folder that our exports write.

Its package is asked for only here, when a set goes there or comes from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ConfigError, StoreError

PREFIX = "hf:"


def fetched(name: str) -> Path:
    """The folder of a data set repository `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, as the Hub's package keeps it.

    Raises:
        ConfigError: the package is missing.
        StoreError: the repository cannot be fetched.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    hub = _package()
    try:
        return Path(hub.snapshot_download(repository, repo_type="dataset", revision=revision or None))
    except Exception as error:  # the package raises its own, requests' and the system's
        raise StoreError(f"cannot fetch {name} from the Hub: {_said(error)}") from error


def send(folder: Path, repository: str, *, private: bool) -> None:
    """Make `repository` where it is not there yet, and put the files of a folder into it.

    Raises:
        ConfigError: the package is missing.
        StoreError: the Hub refuses.
    """
    hub = _package()
    try:
        hub.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, repo_type="dataset")
    except Exception as error:
        raise StoreError(f"cannot send {repository} to the Hub: {_said(error)}") from error


def _said(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f"the Hub needs the package huggingface_hub, which cannot be imported ({error}): pip install "
            "huggingface_hub"
        ) from error
    return huggingface_hub
