"""Models of the Hugging Face Hub, by repository and commit."""

import pathlib
import re

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Neither pictures nor pickles, nor code.
_FILES = ["*.json", "*.safetensors"]


def fetch(source: str | pathlib.Path) -> pathlib.Path | str:
    """The folder of a source; a repository of the Hub is downloaded, whole folders are left alone.

    Args:
      source: a folder, or OWNER/NAME@COMMIT, whose 40 digits say exactly which files are meant. A
        folder that exists is taken for one, whatever its name.

    Raises:
      FileNotFoundError: no such folder, and a repository would have its commit.
      ValueError: a commit that is not 40 digits, as a branch is none.
      OSError: huggingface_hub is not installed, or the download fails.
    """
    named = _REPOSITORY.fullmatch(str(source))
    if named is None or pathlib.Path(source).expanduser().exists():
        return source
    repository, commit = named.groups()
    if commit is None:
        raise FileNotFoundError(
            f"there is no folder {source}; for a repository of the Hugging Face Hub of that name "
            f"add the commit: {repository}@ and the 40 digits that its page of commits shows"
        )
    if not _COMMIT.fullmatch(commit):
        raise ValueError(
            f"{source}: {commit!r} is no commit of 40 digits, and branches and tags may change; "
            "take the commit from the repository's page of commits"
        )
    try:
        from huggingface_hub import snapshot_download  # optional, and slow to import
    except ImportError as error:
        raise OSError(
            f"{source} is on the Hugging Face Hub: pip install huggingface_hub, or download it "
            "and give the folder"
        ) from error
    try:
        return pathlib.Path(snapshot_download(repository, revision=commit, allow_patterns=_FILES))
    except Exception as error:  # of many classes, those of its HTTP client among them
        raise OSError(
            f"{source} cannot be downloaded ({error}); check the name and the network, or "
            "download it and give the folder"
        ) from error
