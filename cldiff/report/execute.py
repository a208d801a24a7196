"""papermill, made strict.

Unknown and mistyped parameters are errors before a kernel starts; an output exists only if the notebook ran to its
end; nothing in it depends on the time or place of execution.
"""

import ast
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from traitlets.config import Config

from ..errors import Problem, one_line_a_minute
from ..files import write_atomically

# jsonschema, on its way in, builds a grammar of international addresses, a format that no notebook has: 2 s for each.
sys.modules["rfc3987_syntax"] = None
import nbformat  # noqa: E402

del sys.modules["rfc3987_syntax"]


START = 300  # seconds that a kernel may take to answer: a cluster's file system is slow at first
TUTORIAL = "tutorial_"  # how their names begin
SOCKET = 75  # bytes of a folder's path, at most: that of a socket in it has room for 107


class ExecutionError(Problem):
    """A notebook that could not be executed; the message is one line."""


def check_parameters(notebook: str | Path, parameters: dict) -> None:
    """Raises ExecutionError for a parameter that the notebook does not have, or of another type than its default."""
    from papermill import inspect_notebook

    if not Path(notebook).exists():
        raise ExecutionError(f"no notebook {notebook}")
    known = inspect_notebook(str(notebook))
    for name, value in parameters.items():
        if name not in known:
            raise ExecutionError(f"{Path(notebook).name} has no parameter {name!r}; known: {', '.join(known)}")
        default = ast.literal_eval(known[name]["default"])
        if default is None or value is None:  # None stands for "not given"; the notebook checks the rest
            continue
        if type(value) not in {float: (float, int), list: (list, tuple)}.get(type(default), (type(default),)):
            raise ExecutionError(
                f"{Path(notebook).name}: {name}={value!r}: expected "
                f"{type(default).__name__}, like {default!r}, not {type(value).__name__}"
            )


def execute(notebook: str | Path, output: str | Path, parameters: dict) -> None:
    """Executes a notebook in its own folder and writes it, with its outputs and without timing, to `output`.

    Progress goes to stderr. Raises ExecutionError with one line if a parameter is wrong or a cell fails; the notebook
    up to the failing cell is then kept beside the output as *.failed.ipynb, until it does not fail.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook
    from zmq import ZMQError

    notebook, output = Path(notebook), Path(output)
    check_parameters(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    existed, failed = output.exists(), output.with_suffix(".failed.ipynb")
    with warnings.catch_warnings(), _surroundings() as folder:
        warnings.simplefilter("ignore")
        begun = Path(folder) / notebook.name
        # Unix sockets of its own instead of ports: kernels that start at the same time cannot collide.
        config = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        try:
            execute_notebook(
                str(notebook),
                str(begun),
                parameters,
                cwd=str(notebook.parent),
                kernel_name="python3",
                progress_bar=False,
                start_timeout=START,
                stderr_file=_Progress(),
                config=config,
                extra_arguments=["--log-level=50"],
            )
        except PapermillExecutionError as error:
            text = f"{error.ename}: {error.evalue}".splitlines()[0]
            write_atomically(failed, lambda path: shutil.copyfile(begun, path))
            raise ExecutionError(f"{notebook.name}: {text} (up to there: {failed})") from None
        except DeadKernelError:
            raise ExecutionError(
                f"{notebook.name}: its kernel died, killed or out of memory; run it again to continue, with "
                "fewer JOBS or a smaller batch if memory was short"
            ) from None
        except (RuntimeError, ZMQError) as error:  # of the kernel's start: errors of cells were above
            raise ExecutionError(
                f"{notebook.name}: its kernel did not start ({str(error).splitlines()[0]}): run it again; if that does "
                f"not help, see what `{sys.executable} -m ipykernel_launcher` says, and whether TMPDIR takes sockets"
            ) from None
        clean(begun)
        move_links(begun, notebook.parent, output.parent)
        if existed or not output.exists():  # else another process made it meanwhile, and this one found it made
            write_atomically(output, lambda path: shutil.copyfile(begun, path))
        failed.unlink(missing_ok=True)


@contextmanager
def _surroundings() -> Iterator[str]:
    """A folder for one kernel, which is of this Python and knows nobody's settings of Jupyter, IPython, matplotlib."""
    usual = tempfile.gettempdir()
    place = usual if len(os.fsencode(usual)) <= SOCKET else "/tmp"
    try:
        own = tempfile.TemporaryDirectory(prefix="cldiff-", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise ExecutionError(
            f"no folder for a kernel's sockets in {place} ({error.strerror}): set TMPDIR to one whose path has at most "
            f"{SOCKET} bytes"
        ) from None
    before = dict(os.environ)
    with own as folder:
        spec = Path(folder, "jupyter/kernels/python3/kernel.json")
        spec.parent.mkdir(parents=True)
        words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": words, "display_name": "Python 3", "language": "python"}))
        os.environ.update(
            JUPYTER_PATH=f"{folder}/jupyter",
            JUPYTER_RUNTIME_DIR=f"{folder}/runtime",
            IPYTHONDIR=f"{folder}/ipython",
            MPLBACKEND="module://matplotlib_inline.backend_inline",
            PYTHONUTF8="1",
            PYDEVD_DISABLE_FILE_VALIDATION="1",  # silences a warning of the kernel's debugger
        )
        os.environ.setdefault("HOME", folder)  # a container's user may have none
        os.environ.pop("PYTHONSTARTUP", None)
        one_line_a_minute()
        try:
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)


class _Progress:
    """Passes a kernel's stderr on, with a line for each state of a progress bar where the output is a file."""

    begun = False  # whether the line of the log is

    def write(self, text: str) -> None:
        if not sys.stderr.isatty():
            text = text.replace("\r", "\n") if self.begun else text.replace("\r", "\n").lstrip("\n")
            self.begun = not text.endswith("\n") if text else self.begun
        sys.stderr.write(text)
        sys.stderr.flush()

    def flush(self) -> None:
        sys.stderr.flush()


def move_links(path: Path, source: Path, target: Path) -> None:
    """Links of a notebook's text to files, which are relative to `source`, as they are from `target`. Tutorials, which
    are executed into one folder, go on to link to each other."""

    def moved(link: re.Match) -> str:
        if path.name.startswith(TUTORIAL) and link[1].startswith(TUTORIAL):
            return link[0]
        return f"]({Path(os.path.relpath(source / link[1], target)).as_posix()})"

    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?!\w+:|[#/])([^)\s]+)\)", moved, cell.source)
    nbformat.write(book, path)


def clean(path: Path) -> None:
    """Removes what differs between two executions with the same result: times, random IDs, progress bars, versions."""
    book = nbformat.read(path, as_version=4)
    book.metadata = {"kernelspec": book.metadata.get("kernelspec", {}), "language_info": {"name": "python"}}
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
    nbformat.write(book, path)
