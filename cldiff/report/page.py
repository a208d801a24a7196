"""One page from an executed notebook.

The page is one file that reads offline: pictures are inside, code is folded, and nothing of the notebook can run or
load anything, whoever wrote it. Where chromium is installed, PAGE.pdf is printed too.
"""

import html
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import bleach
import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from traitlets.config import Config

from ..errors import Problem
from ..files import write_atomically

SHOWN = ["text/markdown", "image/png", "image/jpeg", "text/plain"]  # of each output the first that it has
TAGS = {
    *bleach.ALLOWED_TAGS,
    *"h1 h2 h3 p pre div span br hr sub sup img details summary table thead tbody tr th td".split(),
}
TEMPLATE = """{%- extends 'display_priority.j2' -%}
{% macro picture(output, kind) %}<img src="data:{{ kind }};base64,{{ output.data[kind] | replace('\n', '') | e }}"
 alt="{{ (output | get_metadata('alt', kind) or 'picture drawn by the code above') | e }}">{% endmacro %}
{% block input %}<details><summary>code</summary>{{ cell.source | highlight_code }}</details>{% endblock %}
{% block execute_result scoped %}{% block data_priority scoped %}{{ super() }}{% endblock %}{% endblock %}
{% block markdowncell scoped %}{{ cell.source | markdown2html }}{% endblock %}
{% block data_markdown scoped %}{{ output.data['text/markdown'] | markdown2html }}{% endblock %}
{% block data_png scoped %}{{ picture(output, 'image/png') }}{% endblock %}
{% block data_jpg scoped %}{{ picture(output, 'image/jpeg') }}{% endblock %}
{% block data_text scoped %}<pre>{{ output.data['text/plain'] | e }}</pre>{% endblock %}
{% block stream scoped %}<pre>{{ output.text | e }}</pre>{% endblock %}
{% block error scoped %}<pre>{{ output.ename | e }}: {{ output.evalue | e }}</pre>{% endblock %}
"""
REPAIRS = (
    (r'<a class="anchor-link"[^>]*></a>', ""),
    (r"<img (?![^>]*src=)[^>]*>", ""),  # of elsewhere: its address was dropped
    (r"</details>\s*<details><summary>code</summary>", ""),  # cells without outputs fold into the next one
    (r"(<img [^>]*>)\s*<p>(.*?)</p>", r"<figure>\1<figcaption>\2</figcaption></figure>"),
    (r"<p>(<strong>Table [^\n]*?)</p>\s*<table>", r'<p class="caption">\1</p><table>'),
    (r'(<p class="caption">[^\n]*?</p><table>(?:(?!<table>).)*?</table>)\s*<p>', r'\1<p class="note">'),
    (r"<table>(.*?)</table>", r'<div class="table" tabindex="0"><table>\1</table></div>'),
    (r"<td>((?:<(?:strong|code)>)?[^<]{0,24}(?:</(?:strong|code)>)?</td>)", r'<td class="short">\1'),  # on one line
    (r"(?<=\d) (?=%|±)|(?<=±) (?=\d)|(?<=\bt) (?=[=<] )|(?<=\bt [=<]) (?=\d)", "\N{NO-BREAK SPACE}"),
)
BESIDE = r'<a href="(?!https?:|mailto:|#)[^"]*">(.*?)</a>'  # to files beside the page, which its PDF leaves behind
SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.I)  # what a link does, where it is more than a place
STYLE = Path(__file__).with_name("page.css")


class PageError(Problem):
    """A notebook that no page can be made of; the message is one line."""


class Exporter(HTMLExporter):
    """With the templates of this Python's nbconvert, where it has them: not with anybody's own of the same names."""

    def get_prefix_root_dirs(self) -> list[str]:
        own = Path(sys.prefix, "share", "jupyter")
        return [str(own)] if (own / "nbconvert" / "templates" / "basic").exists() else super().get_prefix_root_dirs()


def kept(tag: str, name: str, value: str) -> bool:
    """Attributes that neither run nor load anything."""
    return (
        name in ("id", "class", "alt", "title")
        or (tag, name) == ("a", "href")
        and (not SCHEME.match(value) or value.startswith(("https:", "http:", "mailto:")))
        or ((tag, name) == ("img", "src") and value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")))
    )


def first(tag: str, body: str) -> str:
    """The plain text of the first element of a kind; "" where there is none."""
    found = re.search(f"<{tag}[ >].*?</{tag}>", body, re.S)
    return " ".join(html.unescape(re.sub("<.*?>", "", found[0])).split()) if found else ""


def page(notebook: str | Path) -> str:
    """The HTML of an executed notebook, the same for the same notebook. Raises PageError if there is none."""
    try:
        book = nbformat.read(notebook, as_version=4)
        nbformat.validate(book)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise PageError(f"{notebook}: no notebook to read ({type(error).__name__})") from None
    try:
        exporter = Exporter(
            template_name="basic",
            extra_loaders=[DictLoader({"page.html.j2": TEMPLATE})],
            template_file="page.html.j2",
            anchor_link_text="",
            exclude_input_prompt=True,
            exclude_output_prompt=True,
            config=Config(NbConvertBase={"display_data_priority": SHOWN}),
        )
        body, _ = exporter.from_notebook_node(book)
    except ValueError as error:
        cause = str(error).partition("\n")[0].rstrip(":")
        raise PageError(f"{notebook}: nbconvert makes no page of it ({cause}): reinstall nbconvert") from None
    body = body.replace('style="text-align:right"', 'class="number"')  # styles do not pass
    body = bleach.clean(body, tags=TAGS, attributes=kept, protocols={"http", "https", "mailto", "data"})
    for pattern, text in REPAIRS:
        body = re.sub(pattern, text, body, flags=re.S)
    links = "\n".join(
        f'<a href="#{name}">{title}</a>' for name, title in re.findall(r'<h2 id="(.*?)">(.*?)</h2>', body)
    )
    body = re.sub("<h2", lambda _: f"<nav>{links}</nav>\n<h2", body, count=1)
    title, description = (html.escape(first(tag, body)[:300]) for tag in ("h1", "p"))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title or Path(notebook).stem}</title>
<meta name="description" content="{description}"><style>
{STYLE.read_text(encoding="utf-8")}</style></head>
<body>
{body}
</body></html>
"""


def print_pdf(source: Path, target: Path, chromium: str) -> bool:
    """Prints a page, without the time of day; False if this chromium cannot."""
    words = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--no-pdf-header-footer",
        f"--user-data-dir={source.parent}/own",
        f"--print-to-pdf={target}",
        source.as_uri(),
    ]
    try:
        subprocess.run(words, capture_output=True, timeout=120, check=True)
        target.write_bytes(re.sub(rb"\(D:\d{14}", b"(D:20240101000000", target.read_bytes()))
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def write_page(notebook: Path, target: Path) -> None:
    """Writes the page of an executed notebook and, where chromium is installed, its PDF beside it."""
    text, chromium = page(notebook), shutil.which("chromium")
    with TemporaryDirectory(prefix="cldiff-", ignore_cleanup_errors=True) as folder:
        plain, printed = Path(folder, "page.html"), Path(folder, "page.pdf")
        plain.write_text(re.sub(BESIDE, r"\1", text, flags=re.S), encoding="utf-8")
        pdf = target.with_suffix(".pdf")
        if chromium and print_pdf(plain, printed, chromium):
            write_atomically(pdf, lambda path: shutil.copyfile(printed, path))
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            pdf.unlink(missing_ok=True)  # it is another page's
        # Last: where it is, its PDF was tried.
        write_atomically(target, partial(Path.write_text, data=text, encoding="utf-8"))
