"""Location of a checkpoint's files, and writing of text files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from openblip.checkpoints.hub import is_offline
from openblip.checkpoints.resolve import resolve
from openblip.errors import CheckpointError, DownloadError, InputError
from openblip.io import atomic

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

StrPath: TypeAlias = str | os.PathLike[str]
Values: TypeAlias = dict[str, Any]
"""Settings or options by name."""

_PATTERNS = ["*.json", "vocab.txt", "*.safetensors", "pytorch_model*.bin"]
_IGNORED = ("proxies", "trust_remote_code", "_from_auto", "_from_pipeline")


def local_folder(name_or_path: StrPath, kwargs: Mapping[str, Any]) -> tuple[Path, Values]:
    """Return the local folder or file of a checkpoint, downloaded if necessary, and the remaining options.

    Args:
        name_or_path: Local folder or file, or hub id.
        kwargs: Options of a `from_pretrained` method. `revision`, `token`, `cache_dir`, `force_download`,
            `local_files_only` and `subfolder` locate the files; options that have no effect here are dropped.

    Returns:
        The path, and the options that do not locate the files.

    Raises:
        CheckpointError: If the path does not exist.
        DownloadError: If the files cannot be downloaded.
    """
    options = dict(kwargs)
    client_options = {name: options.pop(name, None) for name in ("revision", "token", "cache_dir", "force_download")}
    client_options["token"] = client_options["token"] or options.pop("use_auth_token", None)
    local_only = bool(options.pop("local_files_only", False))
    subfolder = options.pop("subfolder", None) or ""
    for name in _IGNORED:
        options.pop(name, None)
    if client_options["revision"] == "main":
        client_options["revision"] = None
    client_options = {name: value for name, value in client_options.items() if value}
    path = Path(name_or_path).expanduser()
    if path.exists() or not client_options:
        path = resolve(name_or_path, offline=True if local_only else None)
    else:
        path = _download_snapshot(str(name_or_path), client_options, local_only)
    path = path / subfolder if subfolder else path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    return path, options


def _download_snapshot(repository: str, options: Mapping[str, Any], local_only: bool) -> Path:
    """Download a repository with options that `openblip.checkpoints` does not have."""
    from huggingface_hub import snapshot_download

    local_only = local_only or is_offline()
    try:
        return Path(snapshot_download(repository, local_files_only=local_only, allow_patterns=_PATTERNS, **options))
    except Exception as error:  # the client raises the errors of its transport, too
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DownloadError(f"cannot download {repository} from the hub: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Args:
        path: The file.
        text: Its content.

    Raises:
        InputError: If the folder of `path` is a file.
    """
    if path.parent.is_file():
        raise InputError(f"the folder to save in must not be a file, got {path.parent}")
    atomic.write_text(path, text)


class PushToHub:
    """The method `push_to_hub` of everything that has `save_pretrained`."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = None,
        tags: list[str] | None = None,
        **save_options: Any,
    ) -> CommitInfo:
        """Save to a temporary folder, and upload it to a repository of the hub, which is created if necessary.

        Args:
            repo_id: Repository, as `owner/name`.
            commit_message: Message of the commit.
            commit_description: Description of the commit.
            private: Whether a new repository is private.
            token: Token for the hub; by default the stored one.
            revision: Branch to commit to.
            create_pr: Open a pull request instead of committing.
            max_shard_size: Size from which the weights of a model are split into several files.
            tags: Tags of the model card, which is written if the repository has none.
            **save_options: Arguments of `save_pretrained`.

        Returns:
            The commit, a text with its address.
        """
        if max_shard_size is not None:
            save_options["max_shard_size"] = max_shard_size
        with TemporaryDirectory() as folder:
            untyped: Any = self
            untyped.save_pretrained(folder, **save_options)
            return self._upload(
                Path(folder),
                repo_id,
                token=token,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                revision=revision,
                create_pr=create_pr,
                tags=tags,
            )

    def _push(self, folder: Path, push_to_hub: bool, options: Values) -> None:
        """Upload a saved folder if asked to. `options` are arguments of `push_to_hub`, or values of unknown options."""
        if push_to_hub:
            self._upload(folder, options.pop("repo_id", folder.name), **options)
        elif unknown := [name for name, value in options.items() if value]:
            raise TypeError(f"save_pretrained has no option {', '.join(unknown)}")

    def _upload(
        self,
        folder: Path,
        repo_id: str,
        *,
        token: bool | str | None = None,
        private: bool | None = None,
        tags: list[str] | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> CommitInfo:
        """Upload the files of a folder."""
        from huggingface_hub import HfApi, ModelCard, ModelCardData

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        all_tags = [*(getattr(self, "model_tags", None) or []), *(tags or [])]
        if all_tags and not (folder / "README.md").exists():
            ModelCard.from_template(ModelCardData(tags=all_tags)).save(folder / "README.md")
        message = commit_message or f"Upload {type(self).__name__}"
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision, **options
        )
