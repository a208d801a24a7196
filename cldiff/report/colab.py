"""Makes the notebooks that a reader opens run in Google Colab.

Each gets a set-up cell, and README.md a row of badges. Both need the repository's address, which is that of the remote
`origin`; without one nothing is changed.
"""

import re
import subprocess
from pathlib import Path

import nbformat

NOTEBOOKS = ("tutorial_*.ipynb", "run.ipynb", "paper.ipynb")
MISSING = ("clean-fid>=0.1.35,<0.2", "torch-fidelity>=0.4,<0.5")  # what the notebooks import and Colab does not have
START, END = "<!-- colab: `make colab` writes the badges -->", "<!-- /colab -->"
CELL = """\
# Google Colab: installs cldiff. Anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    ![ -d /content/cldiff ] || git clone --quiet --depth 1 {address} /content/cldiff
    # --no-deps: Colab's torch, which fits its GPU, stays. --editable: results then name the commit.
    !pip install --quiet --no-deps --editable /content/cldiff {missing}
    sys.path.insert(0, "/content/cldiff")  # a running kernel does not notice the editable install
    %cd -q /content/cldiff/notebooks"""
COLAB = "https://colab.research.google.com"


def git(*words: str) -> str:
    """What git answers; "" where it fails. Raises ValueError without git."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        raise ValueError("no git on PATH, which knows the address of origin; nothing was changed") from None


def repository() -> tuple[str, str]:
    """Owner/name on GitHub of the remote `origin`, and the branch that the badges open. ValueError without one."""
    address = git("remote", "get-url", "origin")
    if not address:
        raise ValueError("no remote named origin: Colab needs an address to install from; nothing was changed")
    found = re.search(r"(?:@|//)github\.com[:/]([\w-]+/[\w.-]+?)(?:\.git)?/?$", address)
    if not found:  # the address is not repeated: it may hold a password
        raise ValueError(
            "the remote origin is not on github.com, from where Colab opens notebooks; nothing was changed"
        )
    default = git("symbolic-ref", "--short", "refs/remotes/origin/HEAD").removeprefix("origin/")
    return found[1], default or git("branch", "--show-current") or "main"


def with_set_up(path: Path, address: str) -> str:
    """The notebook's text with one set-up cell, right after the title."""
    book = nbformat.read(path, as_version=4)
    cells = [cell for cell in book.cells if "colab" not in cell.metadata.get("tags", [])]
    source = CELL.format(address=address, missing=" ".join(f'"{name}"' for name in MISSING))
    cell = nbformat.v4.new_code_cell(source, id="colab", metadata={"tags": ["colab"]})
    book.cells = [cells[0], cell, *cells[1:]]
    return nbformat.writes(book) + "\n"


def with_badges(readme: str, names: list[str], repository: str, branch: str) -> str:
    """README.md's text with a badge for each notebook between the two markers. ValueError without these."""
    if START not in readme or END not in readme.partition(START)[2]:
        raise ValueError(
            f"README.md lacks the lines {START} and {END}, between which the badges go; nothing was changed"
        )
    before, _, rest = readme.partition(START)
    badges = "\n".join(
        f"[![{name} in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{repository}/blob/{branch}"
        f"/notebooks/{name}.ipynb) {name}"
        for name in names
    )
    return f"{before}{START}\n{badges}\n{END}{rest.partition(END)[2]}"


def write_all() -> None:
    """Raises ValueError where the repository has no address on GitHub."""
    name, branch = repository()
    paths = [path for pattern in NOTEBOOKS for path in sorted(Path("notebooks").glob(pattern))]
    texts = {path: with_set_up(path, f"https://github.com/{name}") for path in paths}
    readme = Path("README.md")
    texts[readme] = with_badges(readme.read_text(encoding="utf-8"), [path.stem for path in paths], name, branch)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(paths)} notebooks and README.md: Colab installs from https://github.com/{name}, branch {branch}")
