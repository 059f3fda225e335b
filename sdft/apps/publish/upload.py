"""A folder on the hub in one commit: everything is there, or nothing new is."""

from pathlib import Path


def upload_folder(folder: Path, to: str, private: bool, message: str) -> str:
    """The address of the commit. `ValueError` without a token, without the hub, or where `to` is public and should not be."""
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    token = get_token()
    if not token:
        raise ValueError(f"push=true: no token to write to {to} with; run hf auth login, or set HF_TOKEN")
    if constants.HF_HUB_OFFLINE:
        raise ValueError("push=true: HF_HUB_OFFLINE forbids the network; unset it, or give push=false")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files]
    api, made = HfApi(token=token), False
    try:
        if api.repo_exists(to):
            if private and not api.model_info(to).private:
                raise ValueError(f"to={to}: is there and public; give private=false, or another name")
        else:
            api.create_repo(to, private=private)
            made = True
        return api.create_commit(to, operations, commit_message=message).commit_url
    except (OSError, httpx.HTTPError) as error:  # of the hub: HfHubHTTPError is an OSError
        left = f"; {to} was made and is empty" if made else ""
        raise ValueError(f"push=true: the hub took nothing ({summarize_hub_error(error)}){left}") from None


def summarize_hub_error(error: Exception) -> str:
    """Its first line, without the address that the request went to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = getattr(error, "server_message", None) or (lines[0] if lines else type(error).__name__)
    return " ".join(str(told).split())
