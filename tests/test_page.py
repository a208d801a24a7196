"""The page of a notebook: one file that reads offline, in which nothing of the notebook can run or load anything."""

import base64
import html
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cldiff.report.page import PageError, page, print_pdf, write_page

PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
        "0000000a49444154789c63680000008200815a20f3ae0000000049454e44ae426082"
    )
).decode()
EVIL = "<script>alert(1)</script><img src=https://a.example/b.png onerror=alert(2)><iframe src=//a.example></iframe>"


def output(kind, data, result=False, **metadata):
    return new_output(
        "execute_result" if result else "display_data",
        data={kind: data, "text/plain": "plain"},
        metadata={kind: metadata},
    )


@pytest.fixture
def notebook(tmp_path):
    cells = [
        new_markdown_cell(
            f"# A & B\n\nFirst *words*.\n\n## One part\n\n{EVIL}\n\n[here](javascript:alert(3)) [to](<javascript:1>) "
            "[a page](DATA:text/html;base64,PGI+) <a href=' data:text/html,b'>b</a> [kept](docs/a.md) [site](https://a.example)\n\n"
            "<b onclick=x>b</b>\n\n![far](http://a.example/c.png)"
        ),
        new_code_cell("folded = 1"),
        new_code_cell(
            "draw()  # <script>",
            outputs=[
                output("image/png", PIXEL, alt="A curve & its 'rise' > 0"),
                output("text/markdown", "**Figure 1.** What to see"),
                output(
                    "text/markdown", "**Table 1.** Numbers\n\n| method | FID |\n| - | -: |\n| L2 | 1.0 ± 0.2 |\n\nnote"
                ),
                output("text/markdown", "text\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\nmore text"),
                output("text/markdown", f"shown as result {EVIL}", result=True),
                output("text/html", EVIL),
                output("image/svg+xml", f"<svg>{EVIL}</svg>"),
                output("application/javascript", "alert(4)"),
                output("image/png", PIXEL),
                output("image/png", f'"><script>alert(5)</script>{PIXEL}'),
                new_output("stream", name="stdout", text=f"printed {EVIL}"),
                new_output("error", ename="Error", evalue=EVIL, traceback=[EVIL]),
            ],
        ),
    ]
    path = tmp_path / "book.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_page_is_one_file_in_which_nothing_runs_or_loads(notebook):
    tags = re.findall(r"<[a-zA-Z][^>]*>", page(notebook))
    assert not re.search(r"@import|url\(", page(notebook))
    for tag in tags:
        name = re.match(r"<(\w+)", tag)[1].lower()
        assert name not in ("script", "link", "iframe", "object", "embed", "svg", "form", "base"), tag
        attributes = {key: value for key, _, value in re.findall(r"""([\w-]+)=(["'])(.*?)\2""", tag)}
        assert not any(attribute.startswith("on") for attribute in attributes), tag
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,"), tag
        assert attributes.get("href", "#").startswith(("#", "docs/", "https://")), tag
    assert all(f'href="{place}"' in page(notebook) for place in ("docs/a.md", "https://a.example"))
    assert page(notebook).count("&lt;script&gt;alert(1)") == 4  # text cell, result, print and error show it as text


def test_page_has_title_folded_code_figure_with_caption_and_table(notebook):
    text = page(notebook)
    assert '<html lang="en">' in text and "<title>A &amp; B</title>" in text and 'name="viewport"' in text
    assert 'name="description" content="First words."' in text
    assert '<h2 id="One-part">' in text and '<a href="#One-part">One part</a>' in text
    assert text.count("<details>") == 1 and "folded" in text and "draw" in text  # two cells, one fold: nothing between
    images = re.findall("<img [^>]*>", text)
    assert len(images) == 3 and all(" src=" in image and re.search(r"""alt=["'].""", image) for image in images)
    assert html.unescape(re.search('alt="(.*?)"', images[0])[1]) == "A curve & its 'rise' > 0"
    assert re.search(
        r"<figure><img [^>]*><figcaption><strong>Figure 1.</strong> What to see</figcaption></figure>", text
    )
    assert '<p class="caption"><strong>Table 1.</strong> Numbers</p><div class="table" tabindex="0"><table>' in text
    assert '<p class="note">note</p>' in text and "<p>more text</p>" in text  # after a table without a caption
    assert (
        '<th class="number">FID</th>' in text
        and '<td class="number">1.0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.2</td>' in text
        and '<td class="short">L2</td>' in text
        and "shown as result" in text
        and "printed" in text
    )


def test_a_page_is_made_with_nobodys_templates(notebook, tmp_path, monkeypatch):
    """Those in somebody's own folder, or on JUPYTER_PATH, come first elsewhere."""
    usual = page(notebook)
    for name, text in (("base/display_priority.j2", "mine"), ("basic/conf.json", '{"base_template": "mine"}')):
        path = tmp_path / "jupyter" / "nbconvert" / "templates" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert page(notebook) == usual


def test_an_nbconvert_without_templates_is_one_line(notebook, tmp_path, monkeypatch):
    """As installed by hand: they lie outside of its package."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr("nbconvert.exporters.templateexporter.jupyter_path", lambda *words: [str(tmp_path)])
    with pytest.raises(
        PageError, match=r"^.*book.ipynb: nbconvert makes no page of it .No template .*: reinstall nbconvert$"
    ):
        page(notebook)


def test_what_is_printed_links_to_no_file_beside_the_page(tmp_path, monkeypatch):
    """In a PDF such a link would be one into the temporary folder that it was printed in."""
    cell = new_markdown_cell("# T\n\n## A part\n\n[table](a/t.md), [paper](https://arxiv.org/abs/1), [part](#A-part)")
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "book.ipynb")
    printed = []
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr("cldiff.report.page.print_pdf", lambda source, *_: printed.append(source.read_text()))
    write_page(tmp_path / "book.ipynb", tmp_path / "book.html")
    links = [re.findall('<a href="(.*?)"', text) for text in (page(tmp_path / "book.ipynb"), *printed)]
    assert links == [
        ["#A-part", "a/t.md", "https://arxiv.org/abs/1", "#A-part"],
        ["#A-part", "https://arxiv.org/abs/1", "#A-part"],
    ]
    assert "table, <a" in printed[0] and (tmp_path / "book.html").read_text() == page(tmp_path / "book.ipynb")


def test_a_page_that_changes_without_being_printed_leaves_no_pdf_of_the_one_before(tmp_path, monkeypatch):
    target, pdf = tmp_path / "book.html", tmp_path / "book.pdf"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for text, left in (("# T", False), ("# T", True), ("# U", False)):  # new, the same again, another
        nbformat.write(new_notebook(cells=[new_markdown_cell(text)]), tmp_path / "book.ipynb")
        pdf.write_text("printed")
        write_page(tmp_path / "book.ipynb", target)
        assert pdf.exists() == left


@pytest.mark.slow
def test_same_notebook_same_page(notebook, tmp_path):
    for name in ("one", "two"):
        target = tmp_path / name / "page.html"
        target.parent.mkdir()
        shutil.copy(notebook, target.with_suffix(".ipynb"))
        done = subprocess.run(
            [sys.executable, "-m", "cldiff", "make", "any", str(target)],
            capture_output=True,
            text=True,
            env={"PATH": ""},
        )  # without chromium
        target.with_suffix(".ipynb").unlink()
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (tmp_path / name).iterdir()] == ["page.html"]
    assert (
        (tmp_path / "one/page.html").read_bytes()
        == (tmp_path / "two/page.html").read_bytes()
        == page(notebook).encode()
    )


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"cells": 3}', "\0"])
def test_no_notebook_is_one_line(tmp_path, content):
    path = tmp_path / "book.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PageError, match="book.ipynb: no notebook to read") as error:
        page(path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_wrong_words_and_missing_notebook_leave_no_page(tmp_path):
    for words in (["any"], ["any", str(tmp_path / "page.html")]):
        done = subprocess.run([sys.executable, "-m", "cldiff", "make", *words], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_a_cell_prints_or_fails_with_stands_as_it_is(tmp_path):
    words = "a <b>bold</b> word & more"
    outputs = [
        new_output("stream", name="stdout", text=f"{words} printed"),
        new_output("error", ename="E", evalue=f"{words} failed"),
        new_output("display_data", data={"text/plain": f"{words} shown"}),
    ]
    nbformat.write(new_notebook(cells=[new_code_cell("draw()", outputs=outputs)]), tmp_path / "book.ipynb")
    text = page(tmp_path / "book.ipynb")
    for end in ("printed", "failed", "shown"):
        assert f"a &lt;b&gt;bold&lt;/b&gt; word &amp; more {end}" in text
    assert "<title>book</title>" in text  # as it has no heading


def test_a_page_has_one_list_of_its_parts_before_the_first(tmp_path):
    cell = new_markdown_cell("# T\n\nFirst.\n\n## One\n\na\n\n## Two\n\nb")
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "book.ipynb")
    text = page(tmp_path / "book.ipynb")
    assert text.count("<nav>") == 1 and text.index("<nav>") < text.index('<h2 id="One">')
    assert '<nav><a href="#One">One</a>\n<a href="#Two">Two</a></nav>' in text


def test_pictures_of_a_text_are_of_points_alone(tmp_path):
    kinds = ("png", "jpeg", "svg+xml", "gif")
    cell = new_markdown_cell("\n\n".join(f'<img src="data:image/{kind};base64,AAAA">' for kind in kinds))
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "book.ipynb")
    assert re.findall("src=.data:image/(.*?);", page(tmp_path / "book.ipynb")) == ["png", "jpeg"]


def test_a_page_is_printed_without_the_time_of_day_or_not_at_all(tmp_path):
    chromium, source, target = tmp_path / "chromium", tmp_path / "page.html", tmp_path / "page.pdf"
    source.touch()
    for end in (0, 1):
        chromium.write_text(f'#!/bin/sh\nprintf "/CreationDate (D:20261130183305+00)" > {target}\nexit {end}\n')
        chromium.chmod(0o755)
        assert print_pdf(source, target, str(chromium)) == (end == 0)
        if end == 0:
            assert target.read_text() == "/CreationDate (D:20240101000000+00)"
