"""Where a directory came from: a Hugging Face hub cache, `hf download --local-dir`, ModelScope, or a git clone."""

import configparser
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from zwatch.deploy.pipeline_files import WEIGHTS
from zwatch.errors import Refused

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FOLDER = re.compile(r"models--([A-Za-z0-9_.-]+?)--([A-Za-z0-9_.-]+)")
_MODELSCOPE_REVISION = re.compile(r"Revision:([^,\s]{1,128})")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}")
_REMOTE = re.compile(rf"(?:(?!file:)[a-z+]+://[^/]+/|(?:[^/@:]+@)?[^/@:]+:)(?:models/)?({_REPOSITORY.pattern})")
"""A remote of git on a host, with OWNER/NAME: https://huggingface.co/OWNER/NAME, git@hf.co:OWNER/NAME."""
_MOST = 2**16
_MOST_REFS = 2**22
_MOST_LINKS = 8


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a directory came from, as far as it says so itself: `kind` is one of the provenance's kinds."""

    kind: str
    directory: Path
    repository: str | None = None
    revision: str | None = None
    whole: Path | None = None
    """The repository's own directory, of which `directory` may be a component's folder."""


def origin(directory: Path) -> Origin:
    """Return where a directory came from, or the repository that it is a component's folder of; a hub cache's
    `models--OWNER--NAME` stands for the snapshot of its `main`.

    Raises:
        Refused: a cache with no snapshot or several, or with a download that is not finished.
    """
    directory = _snapshot(directory)
    resolved = directory.resolve()
    for place in (directory, resolved):
        for folder in (place, *place.parents):
            if (hub := _hub(folder)) is not None:
                _refuse_incomplete(folder.parent.parent / "blobs")
                kind = "hub" if folder in (directory, resolved) else "diffusers"
                return Origin(kind, directory, *hub, folder)
    found = _origin(directory, directory)
    if found.repository is None and found.revision is None and resolved.name in (*WEIGHTS, "scheduler", "tokenizer"):
        whole = _origin(directory, resolved.parent)
        found = replace(found, repository=whole.repository, revision=whole.revision, whole=resolved.parent)
    return found


def _origin(directory: Path, whole: Path) -> Origin:
    """Return what a repository's directory that is no hub's snapshot says of itself."""
    local = whole / ".cache/huggingface/download"
    if local.is_dir():
        _refuse_incomplete(local)
        git = _git(directory, whole)
        return replace(git, revision=_local_revision(local) or git.revision)
    if any((whole / name).is_file() for name in (".mv", ".msc", ".mdl")):
        return _modelscope(directory, whole)
    return _git(directory, whole)


def of_file(path: Path) -> tuple[str | None, str | None]:
    """Return the repository and revision of a file in a hub's cache, or of a link to one."""
    for _ in range(_MOST_LINKS):
        for folder in (*path.parents, *path.parent.resolve().parents, path.parent.resolve()):
            if (hub := _hub(folder)) is not None:
                return hub
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return None, None


def _hub(folder: Path) -> tuple[str, str] | None:
    """Return the repository and revision of a snapshot's folder in a hub's cache."""
    hub = _HUB_FOLDER.fullmatch(folder.parent.parent.name) if folder.parent.name == "snapshots" else None
    return None if hub is None else (f"{hub[1]}/{hub[2]}", folder.name)


def _snapshot(directory: Path) -> Path:
    """Return the snapshot that a hub cache's directory of one model stands for, or the directory itself."""
    if (directory / "model_index.json").exists():
        return directory
    if directory.name == "snapshots" and _HUB_FOLDER.fullmatch(directory.parent.name):
        directory = directory.parent
    if not _HUB_FOLDER.fullmatch(directory.name) or not (directory / "blobs").is_dir():
        models = sorted(one.name for one in directory.glob("models--*--*"))
        if models:
            raise Refused(f"{directory}: this is a cache of several models; name one: {', '.join(models[:10])}")
        return directory
    there = sorted(one.name for one in (directory / "snapshots").glob("*") if one.is_dir())
    main = _text(directory / "refs/main").strip()
    if main in there:
        return directory / "snapshots" / main
    if len(there) == 1:
        return directory / "snapshots" / there[0]
    found = f"{len(there)} snapshots and no refs/main among them; name one: " if there else "no snapshot; "
    raise Refused(
        f"{directory}: found {found}{', '.join(there) or 'run `hf download` again until it says that it is done'}"
    )


def _refuse_incomplete(directory: Path) -> None:
    """Refuse a download that goes on or was interrupted; its .lock files say nothing, they stay."""
    for path in sorted(directory.rglob("*.incomplete")):
        raise Refused(
            f"{path}: a download goes on or was interrupted; run `hf download` again until it says that it is done, or remove "
            "this file if it is of no use, then import again"
        )


def _local_revision(folder: Path) -> str | None:
    """Return the commit that all files of `hf download --local-dir` are of, from the first line of their metadata."""
    found = {_text(path).partition("\n")[0].strip() for path in folder.rglob("*.metadata")}
    [commit] = found if len(found) == 1 else [""]
    return commit if _COMMIT.fullmatch(commit) else None


def _modelscope(directory: Path, whole: Path) -> Origin:
    """Return what ModelScope's notes and, inside of its cache, the folders say; elsewhere a folder's name says nothing."""
    *_, owner, name = whole.resolve().parts
    cache = whole.resolve().parent.parent
    for unfinished in (whole / "._____temp", cache / "._____temp" / owner / name):
        if any(path.is_file() for path in unfinished.rglob("*")):
            raise Refused(
                f"{unfinished}: a download goes on or was interrupted; run `modelscope download` again until it is done, or "
                "remove this directory if it is of no use, then import again"
            )
    revision = _MODELSCOPE_REVISION.search(_text(whole / ".mv"))
    is_cache = cache.name == "hub" or (cache.name == "models" and cache.parent.name in ("hub", "modelscope"))
    # ModelScope writes a dot of a name as three underscores in its cache.
    repository = f"{owner}/{name}".replace("___", ".")
    is_known = (is_cache or (cache / "._____temp").is_dir()) and _REPOSITORY.fullmatch(repository) is not None
    return Origin("modelscope", directory, repository if is_known else None, revision[1] if revision else None, whole)


def _git(directory: Path, whole: Path) -> Origin:
    """Return what a git clone says of itself; a plain directory says nothing."""
    head = _text(whole / ".git/HEAD").strip()
    if head.startswith("ref: "):
        ref = head.removeprefix("ref: ")
        packed = re.search(rf"^([0-9a-f]{{40}}) {re.escape(ref)}$", _text(whole / ".git/packed-refs", _MOST_REFS), re.MULTILINE)  # fmt: skip
        head = _text(whole / ".git" / ref).strip() or (packed[1] if packed else "")
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        parser.read_string(re.sub(r"^\s+", "", _text(whole / ".git/config"), flags=re.MULTILINE))
    except configparser.Error:
        pass
    url = parser.get('remote "origin"', "url", fallback="").rstrip("/").removesuffix(".git")
    path = _REMOTE.fullmatch(url)
    return Origin("diffusers", directory, path[1] if path else None, head if _COMMIT.fullmatch(head) else None, whole)


def _text(path: Path, most: int = _MOST) -> str:
    """Return the beginning of a small file, or nothing if it cannot be read."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            return file.read(most).decode(errors="replace")
    except OSError:
        return ""


def licence(directory: Path) -> str | None:
    """Return the licence that the front matter of a directory's README.md states, as the hubs write it."""
    text = _text(directory / "README.md")
    if not text.startswith("---"):
        return None
    front = text.split("\n---", 1)[0]
    found = {
        key: value.strip().strip("\"'")
        for key, value in re.findall(r"^(license|license_name)[ \t]*:[ \t]*(\S.*)$", front, flags=re.MULTILINE)
    }
    stated = found.get("license_name") if found.get("license") == "other" else None
    stated = stated or found.get("license")
    return stated if stated and len(stated) <= 200 and stated.isprintable() else None


def is_hub_name(text: str) -> bool:
    """Say whether a text looks like a repository's name on a hub, which nothing here downloads."""
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+", text) is not None and not os.path.exists(text)
