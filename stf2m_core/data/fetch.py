"""Open data sets from where their owners keep them: a manifest enters, its files leave, whole and checked, or an error.

The order of trying, hashing and renaming is pooch's; the transfer itself is ours, because it goes on where it stopped.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stf2m_core.data.archives import unpack
from stf2m_core.data.manifest import load_manifest
from stf2m_core.data.manifest_file import DownloadFacts, Manifest, nearest
from stf2m_core.errors import ManifestError

_CHUNK = 1 << 16  # bytes; what a broken transfer loses at most


def fetch(
    name: str, folder: str | os.PathLike[str], *, manifests: str | os.PathLike[str] | None = None,
    files: Sequence[str] = (), tries: int = 5, timeout_s: float = 30.0, progress: bool | None = None,
) -> Path:  # fmt: skip
    """Get the files of a data set; what is there already is only checked.

    Parts of files are kept, hidden in the folder, and the next try or call goes on from there where a hash is known.

    Args:
        name: of the manifest.
        folder: where the files go; made if it is not there.
        manifests: the folder of the manifests, if not the kit's own.
        files: names of those to get; () gets all that the manifest names.
        tries: at each file, with growing pauses.
        timeout_s: seconds without a byte after which a try has failed.
        progress: show a bar; None: on a terminal.

    Returns:
        The folder.

    Raises:
        ManifestError: if the set is not free to fetch (saying what to do instead), or a file cannot be had as stated.
    """
    manifest = load_manifest(name, manifests=manifests)
    chosen = _chosen(manifest, files)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ManifestError(f"{folder} cannot be made: {error.strerror}", where=f"fetching of {name}") from error
    show = sys.stderr.isatty() if progress is None else progress
    for facts, url, known_hash in _addresses(manifest, chosen, timeout_s):
        path = _fetch_file(facts, url, known_hash, folder, tries=tries, timeout_s=timeout_s, show=show)
        if facts.unpack:
            unpack(path, folder)
    return folder


def _chosen(manifest: Manifest, files: Sequence[str]) -> list[DownloadFacts]:
    if manifest.gated:
        raise ManifestError(f"{manifest.name} is given out by its owners on request only", remedy=manifest.access)
    if not manifest.download:
        raise ManifestError(f"{manifest.name} cannot be fetched by the kit", remedy=manifest.access)
    known = {facts.file: facts for facts in manifest.download}
    for file in files:
        if file not in known:
            raise ManifestError(f"file {file!r} is unknown", expected=" or ".join(known), where=str(manifest.path),
                                remedy=nearest(file, known))  # fmt: skip
    return [known[file] for file in files or known]


def _addresses(
    manifest: Manifest, chosen: Sequence[DownloadFacts], timeout_s: float
) -> list[tuple[DownloadFacts, str, str | None]]:
    """Each file with its address and hash; both from the repository behind the DOI where the manifest has none."""
    import pooch
    import requests

    repository, registry = None, pooch.create(path=".", base_url="")
    if any(facts.url is None for facts in chosen):
        try:
            repository = pooch.downloaders.doi_to_repository(manifest.doi, timeout=timeout_s)
            repository.populate_registry(registry)
        except (requests.RequestException, ValueError, KeyError) as error:
            raise ManifestError(f"doi {manifest.doi} cannot be looked up: {error}", where=str(manifest.path),
                                remedy=f"Try again later. {manifest.access}") from error  # fmt: skip
    found = []
    for facts in chosen:
        if facts.url is None and facts.file not in registry.registry:
            raise ManifestError(f"{facts.file} is not at doi {manifest.doi}", where=str(manifest.path),
                                expected=", ".join(sorted(registry.registry)[:5]), remedy=manifest.access)  # fmt: skip
        url = facts.url or repository.download_url(facts.file)
        known_hash = facts.hash or (registry.registry[facts.file] if facts.url is None else None)
        found.append((facts, url, known_hash))
    return found


def _fetch_file(
    facts: DownloadFacts, url: str, known_hash: str | None, folder: Path, *, tries: int, timeout_s: float, show: bool
) -> Path:
    import pooch
    import requests

    target = folder / facts.file
    if known_hash is None and facts.size is not None and target.is_file() and target.stat().st_size != facts.size:
        target.unlink()  # pooch takes any file for the right one where no hash is known
    registry = pooch.create(
        path=folder, base_url="", registry={facts.file: known_hash}, urls={facts.file: url}, retry_if_failed=tries - 1
    )
    transfer = _Transfer(facts, folder, resume=known_hash is not None, timeout_s=timeout_s, show=show)
    try:
        with _quiet(pooch.get_logger()):
            return Path(registry.fetch(facts.file, downloader=transfer))
    except requests.RequestException as error:
        raise ManifestError(f"{facts.file} could not be fetched in {tries} tries: {_reason(error)}", where=url,
                            remedy="Call again; what has come is kept") from error  # fmt: skip
    except ValueError as error:  # pooch's word for a wrong hash
        raise ManifestError(f"{facts.file} came with other bytes than stated in each of {tries} tries",
                            expected=f"hash {known_hash}", where=url, remedy="It was not kept") from error  # fmt: skip
    except OSError as error:
        raise ManifestError(f"{facts.file} cannot be written: {error.strerror or error}", where=str(folder),
                            remedy="Make room and call again") from error  # fmt: skip


class _Transfer:
    """What pooch calls to get one file; bytes gather in a hidden file beside the target until it is whole."""

    def __init__(self, facts: DownloadFacts, folder: Path, *, resume: bool, timeout_s: float, show: bool):
        self.facts, self.resume, self.timeout_s, self.show = facts, resume, timeout_s, show
        place = folder / facts.file
        self.part = place.with_name(f".{place.name}.part")

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        import requests

        have = self.part.stat().st_size if self.resume and self.part.is_file() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout_s) as answer:
            if answer.status_code == 416:  # what is here is as long as the file, or longer: the hash decides
                os.replace(self.part, output_file)
                return
            self._refuse(answer, url)
            have = have if answer.headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0
            self._write(answer, have)
        os.replace(self.part, output_file)

    def _refuse(self, answer: Any, url: str) -> None:
        """Stop at once where trying again is no use."""
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            answer.raise_for_status()
        if answer.status_code not in (200, 206):
            raise ManifestError(f"the server answers {answer.status_code} {answer.reason} for {self.facts.file}",
                                where=url, remedy="The file may have moved: see the data set's homepage")  # fmt: skip

    def _write(self, answer: Any, have: int) -> None:
        import tqdm

        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else self.facts.size
        if self.facts.size is not None and total != self.facts.size:
            raise ManifestError(f"the server offers {total} bytes of {self.facts.file}", where=answer.url,
                                expected=f"{self.facts.size}, as the manifest states")  # fmt: skip
        self.part.parent.mkdir(parents=True, exist_ok=True)
        settings = {"total": total, "initial": have, "unit": "B", "unit_scale": True, "desc": self.facts.file}
        with self.part.open("ab" if have else "wb") as out, tqdm.tqdm(**settings, disable=not self.show) as bar:
            for chunk in answer.iter_content(_CHUNK):
                out.write(chunk)
                out.flush()
                bar.update(len(chunk))


def _reason(error: Exception) -> str:
    """The innermost cause: what requests wraps around it says nothing to a user."""
    inner: Any = error
    while inner.args and isinstance(inner.args[0], Exception):
        inner = inner.args[0]
    return str(inner)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
