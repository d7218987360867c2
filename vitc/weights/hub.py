"""The Hugging Face hub: a saved model there and back. The library is an extra, used only here.

Its errors become one message each. None carries a token, nor a traceback that could.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from vitc.errors import CheckpointError, ConfigError, VitcError
from vitc.machine import install_line

PATTERNS = ["config.json", "model.safetensors", "README.md"]  # never code
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
HOST = "huggingface.co"
NO_PAGE = (401, 404, 405)  # a mirror answers without a page at its root; 403 and 407 are a proxy's


def is_repo_id(text: str) -> bool:
    """Whether it has the form of a name on the hub: user/name."""
    return bool(REPO_ID.fullmatch(text)) and "--" not in text and ".." not in text


def check_repo_id(text: str) -> None:
    """Raises ConfigError where it has another form."""
    if not is_repo_id(text):
        raise ConfigError(f"{text!r} is not a name on the hub.", "A name is USER/NAME.")


def download(repo_id: str, revision: str | None = None) -> Path:
    """The local folder of a model on the hub, from the hub's cache where it is there already.

    Raises ConfigError: the extra is missing; CheckpointError: no such model, no access, no network.
    """
    hub = _hub(f"There is no folder {repo_id!r}; as a name on the hub it")
    try:
        return Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=PATTERNS))
    except Exception as error:  # of the hub, of its HTTP library, of the network: all kinds
        message, hint = explained(error, repo_id, revision)
        raise CheckpointError(
            f"There is no folder {repo_id!r}, and as a name on the hub: {message}", hint
        ) from None


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    message: str = "Upload with vitc",
) -> str:
    """Upload a saved model; returns its address.

    `repo_id`: user/name; created if it does not exist. `private`: an existing repository that
    differs is refused, rather than shown or hidden. `token`: of the hub, with the right to write;
    None: that of `hf auth login` or HF_TOKEN. `message`: of the commit. Raises ConfigError: an
    invalid name, the extra missing; VitcError: the hub refuses or is offline.
    """
    check_repo_id(repo_id)
    hub = _hub("The hub")
    try:
        api = hub.HfApi(token=token)
        address = str(api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model"))
        existing = bool(api.model_info(repo_id).private)
        if existing != private:
            there, asked = ("private", "public") if existing else ("public", "private")
            raise ConfigError(
                f"{repo_id} exists on the hub and is {there}, not {asked}; nothing was pushed.",
                f"Push with --{there} (private={existing}), or change it on {address}.",
            )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            repo_type="model",
            commit_message=message,
            allow_patterns=[*PATTERNS, "sources/*"],
        )
    except VitcError:
        raise
    except Exception as error:
        text, hint = explained(error, repo_id, None, token)
        raise VitcError(f"{repo_id} was not pushed: {text}", hint) from None
    return address


def in_cache(repo_id: str, file: str) -> bool:
    """Whether the hub's cache on this machine has a file of a model."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return isinstance(try_to_load_from_cache(repo_id, file), str)


def reachable(seconds: float = 1.8) -> bool:
    """Whether the hub answers a request, through a proxy too, decided within so many seconds; never
    where HF_HUB_OFFLINE is set.

    In a thread, because looking up a name knows no time limit of its own.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no"):
        return False
    answered = threading.Event()

    def ask() -> None:
        endpoint = os.environ.get("HF_ENDPOINT") or f"https://{HOST}"
        with suppress(OSError, ValueError, HTTPException):
            try:
                urlopen(Request(endpoint, method="HEAD"), timeout=seconds).close()
            except HTTPError as error:
                error.close()
                if error.code not in NO_PAGE:
                    return
            answered.set()

    attempt = threading.Thread(target=ask, daemon=True)
    attempt.start()
    attempt.join(seconds)
    return answered.is_set()


@contextmanager
def offline_unless_reachable() -> Iterator[None]:
    """Where the hub does not answer, its library looks in its cache alone: else it waits long."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f"{what} needs the library huggingface_hub, which is not installed.",
            f"Install it with: {install_line('hub')}",
        ) from error
    return huggingface_hub


def explained(
    error: Exception, repo_id: str, revision: str | None, token: str | None = None
) -> tuple[str, str | None]:
    """(what went wrong, what to do) of an error of the hub's library; never with a token in it.

    By the names of its class and bases, which have outlived the modules they were defined in.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    log_in = "Log in with: hf auth login (or set HF_TOKEN to a token that may do this)."
    if "LocalTokenNotFoundError" in names or status == 401:
        return f"you are not logged in to the hub, or there is no {repo_id}.", log_in
    if "GatedRepoError" in names:
        return f"{repo_id} asks its readers to agree to terms.", "Agree on its page, and log in."
    if "RevisionNotFoundError" in names:
        return f"{repo_id} has no revision {revision!r}.", "Name a branch, a tag or a commit."
    if "RepositoryNotFoundError" in names or status == 404:
        return f"there is no {repo_id}, or you may not see it.", f"Check the name. {log_in}"
    if status == 403:
        return f"you may not do this with {repo_id}.", log_in
    if "LocalEntryNotFoundError" in names:
        return (
            "the hub cannot be reached, and the model is not in the cache of this machine.",
            "Go online (unset HF_HUB_OFFLINE), or copy the model's folder here and give its path.",
        )
    if re.search(r"OfflineMode|Connect(ion)?Error|Timeout", " ".join(names)):
        return "the hub cannot be reached.", "Go online, and unset HF_HUB_OFFLINE."
    text = (str(error).splitlines() or [""])[0][:300]
    text = text.replace(token, "***") if token else text
    text = re.sub(r"(hf_|Bearer\s+)[\w.-]+", r"\1***", text)
    return f"{type(error).__name__}: {text}", None
