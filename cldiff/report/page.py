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
STYLE = """
:root { color-scheme: light; --sans: system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif }
body { max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; background: #fff; color: #1a1a1a;
  font: 1.06rem/1.6 Charter, "Bitstream Charter", "Source Serif 4", Georgia, serif; overflow-wrap: break-word }
h1, h2, h3, nav, table, figcaption, summary, .caption, .note { font-family: var(--sans) } a { color: #0b5394 }
h1 { font-size: 1.9rem; line-height: 1.2 } h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem } h3 { font-size: 1.08rem }
nav { font-size: .88rem; line-height: 2; border-block: 1px solid #ddd; padding: .5rem 0; margin: 1.6rem 0 }
nav a { margin-right: 1.1rem; white-space: nowrap; text-decoration: none } blockquote { margin: 1rem 0; text-align:
center } figure, .table { margin: 1.4rem 0 .8rem } .table { overflow-x: auto; margin-top: .6rem } img { display: block;
max-width: 100%; height: auto; margin: 0 auto } .caption { margin: 1.8rem 0 0; font-size: .9rem } figcaption, .note
{ font-size: .86rem; line-height: 1.5; color: #444; margin: .6rem 0 1.8rem } table { border-collapse: collapse;
border-block: 2px solid #333; margin: 0 auto; font-size: .82rem; line-height: 1.4 } th, td { padding: .3rem .55rem;
text-align: left; vertical-align: top; font-variant-numeric: tabular-nums } th { border-bottom: 1px solid #333;
vertical-align: bottom } .short { white-space: nowrap } td:not(.short) { min-width: 8.5rem } th:first-child,
td:first-child { position: sticky; left: 0; background: #fff } .table { background: linear-gradient(90deg, #fff 40%,
#fff0) 0 0 / 3rem 100% local, linear-gradient(270deg, #fff 40%, #fff0) 100% 0 / 3rem 100% local, linear-gradient(90deg,
#0003, #0000) 0 0 / .9rem 100% scroll, linear-gradient(270deg, #0003, #0000) 100% 0 / .9rem 100% scroll;
background-repeat: no-repeat } pre { overflow-x: auto; background: #f6f6f4; padding: .7rem .9rem; font: .8rem/1.5
ui-monospace, Menlo, Consolas, monospace } sub, sup { line-height: 0 } code { font-size: .88em } summary { color:
#6a6a6a; font-size: .75rem; cursor: pointer } .c1 { color: #5a6b5a } .k, .kn, .ow { color: #7a2d8c } .s1, .s2, .sa, .sd
{ color: #96401c } @media screen and (min-width: 50rem) { :root { --wide: min(77rem, 100vw - 3rem); --over:
calc((var(--wide) - 46rem) / 2) } figure, .table { width: var(--wide); margin-left: calc(-1 * var(--over)) }
figcaption { padding: 0 var(--over) } } @media screen and (max-width: 40rem) { figure { overflow-x: auto } figure img {
width: 44rem; max-width: none } figcaption { position: sticky; left: 0; width: calc(100vw - 2rem) } figcaption::before
{ content: "(scroll sideways) "; color: #6a6a6a } th:first-child, td:first-child { box-shadow: 6px 0 6px -5px #999 } }
@page { size: A4; margin: 18mm 20mm; @bottom-center { content: counter(page); font: 8pt Arial, sans-serif } } @media
print { body { max-width: none; padding: 0; font-size: 10.5pt } details, nav { display: none } .caption { font-size:
9.5pt } figcaption, .note { font-size: 8.5pt } table { font-size: 7.5pt } th:first-child, td:first-child { position:
static } .table { overflow: visible; background: none } figure img { max-height: 9cm; width: auto } figure, tr,
.table:not(:has(tr:nth-child(15))) { break-inside: avoid } h2, h3, .caption { break-after: avoid } }
"""


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
        and not value.startswith("data:")
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
<meta name="description" content="{description}"><style>{STYLE}</style></head>
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
        if chromium and print_pdf(plain, printed, chromium):
            write_atomically(target.with_suffix(".pdf"), lambda path: shutil.copyfile(printed, path))
        # Last: where it is, its PDF was tried.
        write_atomically(target, partial(Path.write_text, data=text, encoding="utf-8"))
