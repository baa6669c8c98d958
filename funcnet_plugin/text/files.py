"""Reads a file of text: documents, or records with fields, which `datasets` reads.

A file is handed to it by a link of our own: for `datasets` a path is a pattern, `wiki[1].jsonl`
would be another file. What it makes of it goes with the link, so nothing is left in its cache.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from funcnet_plugin.disk import refuse_full_disk
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text.records import records_of

if TYPE_CHECKING:
    from datasets import Dataset

_DOCUMENT = "text"
_KINDS = {
    ".txt": _DOCUMENT, ".text": _DOCUMENT, ".md": _DOCUMENT,
    ".json": "json", ".jsonl": "json", ".ndjson": "json",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
_PACKED = (".gz", ".zst", ".xz", ".bz2", ".lz4", ".zip", ".tar", ".tgz", ".7z")
_BINARY = {b"PAR1": "parquet", b"ARROW1": "arrow"}
_SEPARATORS = (",", "\t", ";", "|")
_MARKS = (  # the longer ones first: those of UTF-32 begin with those of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip


class Content(NamedTuple):
    """Holds what was found in one file.

    Attributes:
        where: the file, for messages.
        found: documents, or records.
    """

    where: str
    found: list[str] | Dataset


def is_text_file(name: str) -> bool:
    """Tell whether a name ends like a file that can be read, and so is no dataset on the hub."""
    return Path(name).suffix.lower() in (*_KINDS, *_PACKED)


def read(path: Path, column: str, scratch: Path) -> Iterator[Content]:
    """Read a file, or the files of a directory, one after another.

    What a file holds is told by its content, and by its ending (in any case) where the content
    does not tell. Compressed files are unpacked. A dataset that was saved to disk is loaded.

    Args:
        path: there.
        column: the field that is looked for.
        scratch: an empty directory, which must be there as long as records are in use.

    Raises:
        CalibrationError: something there is not what it seems to be, or no text at all.
    """
    yield from _Reader(scratch, column).read(path, str(path), path.name)


class _Reader:
    """Reads files and what is packed in them.

    Args:
        scratch: for links, for what is unpacked, and for what `datasets` makes of it.
        column: the field that is looked for.
    """

    def __init__(self, scratch: Path, column: str) -> None:
        self._scratch, self._column = scratch, column

    def read(self, path: Path, where: str, name: str) -> Iterator[Content]:
        """Read a path; `where` is said in messages, and `name` ends as the file does."""
        if path.is_dir():
            yield from self._directory(path, where)
        elif path.stat().st_size and (form := _packed(path)):
            unpacked = self._unpacked(path, where, form)
            yield from self.read(unpacked, where, Path(name).stem)
        elif path.stat().st_size:
            try:
                yield from self._file(path, where, Path(name).suffix.lower())
            except UnicodeDecodeError as error:
                raise CalibrationError(
                    f"{where} is not UTF-8 text; give a .txt, .jsonl, .json, .csv or .parquet file."
                ) from error

    def _directory(self, path: Path, where: str) -> Iterator[Content]:
        if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            yield Content(where, _from_disk(path, where))
            return
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        kinds: dict[str, list[Path]] = {}
        for file in files:
            kind = _kind_of_name(file.name)
            if kind and not any(part.startswith(".") for part in file.relative_to(path).parts):
                kinds.setdefault(kind, []).append(file)
        if not kinds:
            raise CalibrationError(
                f"{where} is a directory without any .txt, .jsonl, .json, .csv or .parquet file; "
                "give one, or a dataset name."
            )
        # A README beside the records is not meant; of several kinds the most frequent one is.
        counts = Counter({kind: len(of_kind) for kind, of_kind in kinds.items()})
        kind = max(counts, key=lambda kind: (counts[kind], kind != _DOCUMENT))
        for file in kinds[kind]:
            inside = str(file.relative_to(path))
            yield from self.read(file, str(Path(where, inside)), file.name)

    def _unpacked(self, path: Path, where: str, form: str) -> Path:
        from datasets.utils.extract import Extractor

        target = Path(tempfile.mkdtemp(dir=self._scratch), "unpacked")
        try:
            Extractor.extract(path, target, form)
        except ImportError as error:
            raise CalibrationError(f"{where} cannot be unpacked: {error}.") from error
        except Exception as error:  # of the library of that form
            refuse_full_disk(error, self._scratch)
            raise CalibrationError(f"{where} is no whole {form} file: {_words(error)}.") from error
        return target

    def _file(self, path: Path, where: str, ending: str) -> Iterator[Content]:
        kind = _KINDS.get(ending)
        with path.open("rb") as file:
            start = file.read(8)
        kind = next((k for magic, k in _BINARY.items() if start.startswith(magic)), kind)
        if kind not in ("parquet", "arrow"):
            path = self._as_utf8(path, start)
            kind = kind if kind == _DOCUMENT else _told_by_content(path, kind, self._column)
        if kind == _DOCUMENT:
            yield Content(where, [path.read_text(encoding="utf-8")])
        elif kind == "json":
            yield Content(where, self._json(path, where))
        elif kind == "csv":
            default = "\t" if ending == ".tsv" else ","
            separator = _separator(_first_line(path)[0], self._column) or default
            yield Content(where, self._load("csv", path, where, sep=separator))
        else:
            yield Content(where, self._load(kind, path, where))

    def _as_utf8(self, path: Path, start: bytes) -> Path:
        """Give the file, or a copy of it without the mark of another encoding."""
        encoding = next((name for mark, name in _MARKS if start.startswith(mark)), None)
        if encoding is None:
            if b"\0" in start:
                raise UnicodeDecodeError("utf-8", start, 0, len(start), "zeros between the letters")
            return path
        copy = Path(tempfile.mkdtemp(dir=self._scratch), "plain")
        copy.write_bytes(path.read_text(encoding=encoding).encode())
        return copy

    def _json(self, path: Path, where: str) -> Dataset:
        from datasets import Dataset

        first, more = _first_line(path)
        if not first:
            return Dataset.from_dict({self._column: []})
        if not (more and _parsed(first) is not None):  # not one value a line
            try:
                whole = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                if isinstance(error, UnicodeDecodeError):
                    raise
                raise CalibrationError(
                    f"{where} is not valid JSON lines: {_bad_line(path) or error}."
                ) from error
            records = records_of(whole, self._column, where)
            path = Path(tempfile.mkdtemp(dir=self._scratch), "lines")
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return self._load("json", path, where)

    def _load(self, kind: str, path: Path, where: str, **options: Any) -> Dataset:
        from datasets import Dataset, load_dataset

        if not path.stat().st_size:
            return Dataset.from_dict({self._column: []})
        link = Path(tempfile.mkdtemp(dir=self._scratch), "data")
        link.symlink_to(path.resolve())
        try:
            return load_dataset(
                kind,
                data_files=str(link),
                split="train",
                cache_dir=str(self._scratch / "cache"),
                **options,
            )
        except Exception as error:  # datasets passes on those of every library that it reads with
            refuse_full_disk(error, self._scratch)
            cause = error.__cause__ or error
            if isinstance(cause, UnicodeDecodeError):
                raise cause from error
            bad = _bad_line(path) if kind == "json" else None
            what = "valid JSON lines" if kind == "json" else f"a {kind} file that can be read"
            raise CalibrationError(f"{where} is not {what}: {bad or _words(cause)}.") from error


def _kind_of_name(name: str) -> str | None:
    path = Path(name)
    if path.suffix.lower() in _PACKED:
        return _KINDS.get(Path(path.stem).suffix.lower(), path.suffix.lower())
    return _KINDS.get(path.suffix.lower())


def _packed(path: Path) -> str | None:
    from datasets.utils.extract import Extractor

    try:
        return Extractor.infer_extractor_format(path)
    except EOFError:  # while it looks for an archive in a .gz that is cut short
        return "gzip"


def _from_disk(path: Path, where: str) -> Dataset:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:  # whatever a damaged one makes of it
        raise CalibrationError(f"{where} is no whole saved dataset: {_words(error)}.") from error
    if not isinstance(found, DatasetDict):
        return found
    if "train" not in found and len(found) > 1:
        raise CalibrationError(
            f"{where} holds the splits {', '.join(found)} and none is called train; give the "
            f"directory of one, {Path(where, next(iter(found)))} for instance."
        )
    return found["train"] if "train" in found else next(iter(found.values()))


def _told_by_content(path: Path, kind: str | None, column: str) -> str:
    """Tell the kind of a file that is no .txt; `kind` is what its ending says."""
    first, _ = _first_line(path)
    if kind == "json" or isinstance(_parsed(first), dict):
        return "json"
    if kind is not None:
        return kind
    if first[:1] in ("{", "[") and _parsed(path.read_text(encoding="utf-8")) is not None:
        return "json"
    return "csv" if _separator(first, column) else _DOCUMENT


def _first_line(path: Path) -> tuple[str, bool]:
    """Read the first line that is not blank, without newlines; tell whether another follows."""
    with path.open(encoding="utf-8") as file:
        lines = (line for line in file if line.strip())
        first = next(lines, "").strip("\r\n")
        return first, next(lines, None) is not None


def _parsed(text: str) -> dict | list | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _separator(header: str, column: str) -> str | None:
    """Find what stands between the names of a header that holds the column among others."""
    for separator in _SEPARATORS:
        names = next(csv.reader(io.StringIO(header), delimiter=separator), [])
        if len(names) > 1 and column in names:
            return separator
    return None


def _bad_line(path: Path) -> str | None:
    """Say what is wrong with the first line that is no JSON."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                if line.strip():
                    json.loads(line)
            except ValueError as error:
                return f"line {number}: {error}"
    return None


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
