"""Labelled genomes by manifest: which files belong to which class, where they come from, and what they were."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from filelock import FileLock, Timeout

from dna_mamba.data.download import MAX_BYTES, check_url, download
from dna_mamba.data.store.build import build
from dna_mamba.data.store.genome import GenomeStore, file_sha256
from dna_mamba.errors import InputError, nearest
from dna_mamba.files import write_json
from dna_mamba.pipelines.config_files import load_yaml
from dna_mamba.values import Json, read_config

SHIPPED = ("great-apes", "hyenadna-5")
"""Manifests in the package, by name."""
RECORD = "fetched.json"
MAX_REPORT_BYTES = 1 << 28
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContigRow:
    """What is known of a contig."""

    name: str
    homologue: str
    """Human chromosome, such as 4, X or 2A, that it descends from with most of its length."""
    verified: bool = False
    """Whether the row comes from the assembly's own report or a cited table; others are refused in splits by homologue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """One assembly of a class: a file here, or one to fetch."""

    name: str
    fasta: str | None = None
    """Path, relative to the manifest."""
    url: str | None = None
    sha256: str | None = None
    """Of the file behind the URL; without it the first download records what came."""
    report_url: str | None = None
    """The assembly's sequence report, which names the human homologue of each contig (hsa labels)."""
    accession: str = ""
    generation: str = ""
    """Such as telomere-to-telomere, chromosomes or scaffolds: classes of different generations differ by more than species."""
    tried: bool = True
    """Whether somebody has fetched from the URL."""
    contigs: tuple[ContigRow, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"assembly name {self.name!r} must be letters, digits and . _ + -, and begin with none of these"
            )
        if (self.fasta is None) == (self.url is None):
            raise InputError(f"assembly {self.name}: give either fasta or url")
        for url in (self.url, self.report_url):
            if url is not None:
                check_url(url)
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise InputError(f"assembly {self.name}: sha256 {self.sha256!r} is not 64 hexadecimal digits in lower case")
        names = [row.name for row in self.contigs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"assembly {self.name}: the contig {twice!r} stands there twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledClass:
    """A label and the assemblies that carry it."""

    label: str
    assemblies: tuple[Assembly, ...]

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.label):
            raise InputError(f"label {self.label!r} must be letters, digits and . _ + -, and begin with none of these")
        if not self.assemblies:
            raise InputError(f"class {self.label} has no assembly; give at least one")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenomeManifest:
    """All classes of a data set."""

    format_version: int
    name: str
    classes: tuple[LabelledClass, ...] = ()
    valid: tuple[str, ...] = ()
    """Human chromosomes (or other homologues) for validation, unless others are asked for."""
    test: tuple[str, ...] = ()
    """The same for test."""

    def __post_init__(self) -> None:
        if self.format_version != 1:
            raise InputError(f"format_version {self.format_version} is unknown; this version reads 1")
        if not NAME.fullmatch(self.name):
            raise InputError(f"name {self.name!r} must be letters, digits and . _ + -, and begin with none of these")
        labels = [one.label for one in self.classes]
        if len(labels) < 2:
            raise InputError(f"{len(labels)} classes; at least two are needed to tell apart")
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise InputError(f"the label {twice!r} stands there twice; put its assemblies under one")
        names = [assembly.name for one in self.classes for assembly in one.assemblies]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"the assembly name {twice!r} stands there twice")


def read_genome_manifest(path: Path) -> GenomeManifest:
    """Read a manifest, from a file or by the name of one in the package; FASTA paths become absolute.

    Raises:
        InputError: It is missing or at fault, or a file that it names does not exist.
    """
    if str(path) in SHIPPED and not path.exists():
        path = Path(str(resources.files("dna_mamba") / "assets" / "manifests" / f"{path}.yaml"))
    elif not path.exists():
        raise InputError(
            f"{path} is no manifest file{nearest(str(path), SHIPPED)}; the package has {', '.join(SHIPPED)}"
        )
    values = load_yaml(path)
    for key in ("format_version", "name", "classes"):
        if key not in values:
            raise InputError(f"{path} lacks the key {key!r}; a manifest has format_version, name and classes")
    for one in _listed(values["classes"], f"{path}: classes"):
        for assembly in _listed(one.get("assemblies"), f"{path}: assemblies of {one.get('label')}"):
            if isinstance(assembly.get("fasta"), str):
                fasta = path.parent / assembly["fasta"]
                if not fasta.exists():
                    raise InputError(f"{path}: {assembly['fasta']} does not exist (looked for {fasta})")
                assembly["fasta"] = str(fasta.absolute())
    return read_config(GenomeManifest, values, str(path))


def _listed(value: object, where: str) -> list[Json]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InputError(f"{where} is {str(value)[:60]!r}, expected a list of sections")
    return value


def homologues_of_report(text: str, where: str) -> dict[str, str]:
    """Read contig names and their human homologues from an NCBI assembly report.

    The homologue is the label hsaN in the sequence name (chr3_hsa4 descends from human chromosome 4), or the assigned
    molecule itself where the report is of a human assembly. Contigs without either are left out.

    Raises:
        InputError: It is no assembly report.
    """
    lines = [line.rstrip("\r\n") for line in text.splitlines()]
    header = next((line for line in reversed(lines) if line.startswith("# Sequence-Name\t")), None)
    if header is None:
        raise InputError(f"{where} is no NCBI assembly report: no line begins with '# Sequence-Name'")
    columns = header[2:].split("\t")
    human = any(re.match(r"# Organism name:\s*Homo sapiens\b", line) for line in lines)
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith("#") or not line.strip():
            continue
        row = dict(zip(columns, line.split("\t"), strict=False))
        homologue = _homologue_of_row(row, human)
        for column in ("RefSeq-Accn", "GenBank-Accn"):
            if homologue not in ("", "na", "MT") and row.get(column, "na") != "na":
                found[row[column]] = homologue
    if not found:
        raise InputError(f"{where} names no human homologue of any contig (no hsa label)")
    return found


def _homologue_of_row(row: Mapping[str, str], human: bool) -> str:
    label = re.search(r"hsa([0-9XY]+[ab]?(?:x[0-9XY]+)?)", row.get("Sequence-Name", ""), re.IGNORECASE)
    if label is None and human and row.get("Sequence-Role") == "assembled-molecule":
        return row.get("Assigned-Molecule", "")
    return label[1] if label else ""


Report = Callable[[str, int, int | None], None]
"""Called with what is being done, bytes done and bytes in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """An assembly that is here."""

    label: str
    assembly: Assembly
    store: Path
    sha256: str
    """Of the file that was fetched or given."""
    recorded_now: bool
    """Whether the manifest named no checksum and this download is the first."""
    homologue_of: dict[str, str] = field(default_factory=dict)
    """Contig to verified human homologue."""


def fetch(
    manifest: GenomeManifest,
    folder: Path,
    *,
    on_progress: Report | None = None,
    say: Callable[[str], None] | None = None,
    pause: float = 1.0,
) -> list[Fetched]:
    """Download what the manifest names and pack it into stores; what is there already is checked and kept.

    Args:
        manifest: The data set.
        folder: Holds files, stores and fetched.json, the record of every checksum.
        on_progress: Called with what is being done, bytes done and bytes in all.
        say: Called with sentences that deserve attention.
        pause: Seconds before the second attempt at a download.

    Raises:
        InputError: A download or a file is at fault; what was there before stays.
    """
    say = say or (lambda words: None)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "fetch.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is fetching into {folder}; wait for it or choose another --out") from None
    try:
        record = _read_record(folder / RECORD)
        done = []
        for one in manifest.classes:
            for assembly in one.assemblies:
                done.append(_fetch_one(one.label, assembly, folder, record, on_progress, say, pause))
                write_json(folder / RECORD, record)
        return done
    finally:
        lock.release()


def _read_record(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(k): {str(a): str(b) for a, b in v.items()} for k, v in values.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged; remove it, and checksums are recorded anew") from error


def _fetch_one(
    label: str,
    assembly: Assembly,
    folder: Path,
    record: dict[str, dict[str, str]],
    on_progress: Report | None,
    say: Callable[[str], None],
    pause: float,
) -> Fetched:
    def progress(what: str) -> Callable[[int, int | None], None]:
        def update(done: int, total: int | None) -> None:
            if on_progress:
                on_progress(f"{what} {assembly.name}", done, total)

        return update

    known = record.setdefault(assembly.name, {})
    recorded_now = False
    if assembly.fasta is not None:
        file = Path(assembly.fasta)
        sha256 = file_sha256(file)
    else:
        file = folder / f"{assembly.name}.fa.gz"
        sha256, recorded_now = _fetch_file(assembly, file, known, progress("downloading"), say, pause)
    homologue_of = {row.name: row.homologue for row in assembly.contigs if row.verified}
    if assembly.report_url is not None:
        homologue_of |= _fetch_report(assembly.name, assembly.report_url, folder, known, say, pause)
    store = folder / f"{assembly.name}.dna"
    if known.get("stored") != sha256 or not _is_store(store):
        try:
            build([file], store, overwrite=True, on_progress=progress("packing"))
        except InputError:
            if recorded_now:  # no genome came, an error page perhaps: the next try asks again
                file.unlink(missing_ok=True)
                known.clear()
            raise
        known["stored"] = sha256
    return Fetched(
        label=label, assembly=assembly, store=store, sha256=sha256, recorded_now=recorded_now, homologue_of=homologue_of
    )


def _fetch_file(
    assembly: Assembly,
    file: Path,
    known: dict[str, str],
    progress: Callable[[int, int | None], None],
    say: Callable[[str], None],
    pause: float,
) -> tuple[str, bool]:
    """Download an assembly and note it in what is known of it; return its SHA-256, and whether that was not known before."""
    assert assembly.url is not None
    if not assembly.tried:
        say(f"{assembly.name}: nobody has tried its URL for this manifest; if it fails, look up {assembly.accession}")
    if known and known.get("url") != assembly.url:
        say(f"{assembly.name}: what is here came from another URL ({known.get('url')}); it is fetched anew")
        file.unlink(missing_ok=True)
        known.clear()
    expected = assembly.sha256 or known.get("sha256")
    sha256 = download(assembly.url, file, sha256=expected, on_progress=progress, max_bytes=MAX_BYTES, pause=pause)
    if expected is None:
        say(f"{assembly.name}: the manifest names no checksum; recorded SHA-256 {sha256} of what came")
    known |= {"sha256": sha256, "url": assembly.url}
    return sha256, expected is None


def _fetch_report(
    name: str, url: str, folder: Path, known: dict[str, str], say: Callable[[str], None], pause: float
) -> dict[str, str]:
    """Download an assembly report and note it in what is known of the assembly; return its contigs' human homologues."""
    report = folder / f"{name}.report.txt"
    if known.get("report_url", url) != url:
        report.unlink(missing_ok=True)
        known.pop("report_sha256", None)
    expected = known.get("report_sha256")
    came = download(url, report, sha256=expected, max_bytes=MAX_REPORT_BYTES, pause=pause)
    try:
        homologue_of = homologues_of_report(report.read_text(encoding="utf-8", errors="replace"), str(report))
    except InputError:  # an error page perhaps: the next try asks again
        report.unlink(missing_ok=True)
        known.pop("report_sha256", None)
        raise
    if expected is None:
        say(f"{name}: no checksum of its report is known; recorded SHA-256 {came} of what came")
    known |= {"report_sha256": came, "report_url": url}
    return homologue_of


def _is_store(path: Path) -> bool:
    try:
        GenomeStore.open(path)
    except InputError:
        return False
    return True
