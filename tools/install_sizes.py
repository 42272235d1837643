"""Measure what the package and each of its extras need on the disk, as installed here; write nbs/benchmark/install.json.

An extra whose packages are not all installed is left out of a new measurement, and keeps its old row.
"""
import json
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from atomrl_nb.checkpoints import write_text
from atomrl_nb.experiment import provenance, rows_as_json

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "nbs" / "benchmark" / "install.json"


def closure(wanted):
    """Return {name: MB on the disk} of distributions and of all that they require; raise where one is not installed."""
    sizes, left = {}, [(Requirement(one), ()) for one in wanted]
    while left:
        need, extras = left.pop()
        if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = need.name.lower().replace("_", "-")
        found = distribution(name)
        if name not in sizes:
            files = [Path(str(file.locate())) for file in found.files or []]
            sizes[name] = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
            left += [(Requirement(one), tuple(need.extras)) for one in found.requires or []]
    return sizes


def rows():
    """Yield a row for the package alone, and one for what each extra adds."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    base = closure(config["DEFAULT"]["requirements"].split())
    own = sum(path.stat().st_size for path in (ROOT / "atomrl_nb").rglob("*") if path.is_file() and "__pycache__" not in str(path)) / 1e6
    yield dict(extra="", packages=len(base), megabytes=round(sum(base.values())), largest=max(base, key=base.get),
               largest_megabytes=round(max(base.values())), own_megabytes=round(own))
    for key in config["DEFAULT"]:
        if not key.endswith("_requirements"):
            continue
        try:
            more = {name: size for name, size in closure(config["DEFAULT"][key].split()).items() if name not in base}
        except PackageNotFoundError as error:
            print(f"{key}: {error} is not installed")
            continue
        yield dict(extra=key.removesuffix("_requirements"), packages=len(more), megabytes=round(sum(more.values())))


def main():
    """Measure, and keep the rows of what is not installed."""
    new = list(rows())
    old = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else []
    kept = [row for row in old if row["extra"] not in {row["extra"] for row in new}]
    result = dict(about="megabytes on the disk; of an extra, those of packages that the package itself does not need",
                  provenance=provenance("python tools/install_sizes.py"), rows=[*new, *kept])
    write_text(FILE, rows_as_json(result))
    for row in result["rows"]:
        print(row)


if __name__ == "__main__":
    main()
