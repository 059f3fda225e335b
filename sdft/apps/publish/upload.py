"""Upload a folder to the Hugging Face Hub in one commit, so that either all files change or none."""

from pathlib import Path


def upload_folder(folder: Path, to: str, private: bool, message: str) -> str:
    """Return the URL of the commit. Raises `ValueError` without a token or network, or if `to` is public but `private` is set."""
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    token = get_token()
    if not token:
        raise ValueError(f"push=true: no token for {to}; run hf auth login, or set HF_TOKEN")
    if constants.HF_HUB_OFFLINE:
        raise ValueError("push=true: HF_HUB_OFFLINE disables the network; unset it, or set push=false")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files]
    api, is_created = HfApi(token=token), False
    try:
        if api.repo_exists(to):
            if private and not api.model_info(to).private:
                raise ValueError(f"to={to}: exists and is public; set private=false, or choose another name")
        else:
            api.create_repo(to, private=private)
            is_created = True
        return api.create_commit(to, operations, commit_message=message).commit_url
    except (OSError, httpx.HTTPError) as error:  # HfHubHTTPError is an OSError
        leftover = f"; {to} was created and is empty" if is_created else ""
        raise ValueError(f"push=true: upload failed ({summarize_hub_error(error)}){leftover}") from None


def summarize_hub_error(error: Exception) -> str:
    """The first line of the error, without the request's URL."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = getattr(error, "server_message", None) or (lines[0] if lines else type(error).__name__)
    return " ".join(str(message).split())
