"""Print the oldest version of every requirement that settings.ini allows, as pip takes it: `numpy==1.26.0 ...`."""
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("notebook", "dev", "tensorboard")  # what tests and notebooks need beside the package's own requirements


def oldest(requirement):
    """Turn one requirement into the pin of its lower bound."""
    found = re.fullmatch(r"([\w.-]+)[>=]=([\d.]+)(,<[\d.]+)?", requirement)
    if not found:
        sys.exit(f"settings.ini gives no lower bound that pip could install: {requirement!r}.")
    return f"{found[1]}=={found[2]}"


def pins():
    """Return the pins of the package's requirements and of the extras, each name once."""
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    parts = ["requirements", *(f"{extra}_requirements" for extra in EXTRAS)]
    every = [oldest(requirement) for part in parts for requirement in settings["DEFAULT"][part].split()]
    names = [pin.partition("==")[0] for pin in dict.fromkeys(every)]
    if len(set(names)) < len(names):
        sys.exit("settings.ini gives two lower bounds for " + ", ".join(sorted({n for n in names if names.count(n) > 1})) + ".")
    return list(dict.fromkeys(every))


if __name__ == "__main__":
    print(*pins(), sep="\n")
