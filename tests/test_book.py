"The book as a web site: built without a warning, whole without a network, every link leads somewhere."
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

pytest.importorskip("myst_nb")
pytest.importorskip("sphinx_book_theme")
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def build(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "tools/book.py", folder], capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert str(folder / "index.html") in done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, BeautifulSoup]:
    return {p.relative_to(site).as_posix(): BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser")
            for p in site.rglob("*.html")}


def page(notebook: Path) -> str:
    return notebook.relative_to(ROOT / "nbs").with_suffix(".html").as_posix()


def text(cell: dict) -> str:
    return "".join(line for line in cell["source"].splitlines() if not line.startswith("#|"))


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_every_link_leads_somewhere(site, pages):
    dead, inside = [], 0
    for name, soup in pages.items():
        for tag in soup.select("[href], [src]"):
            url = urlsplit(tag.get("href") or tag.get("src"))
            if url.scheme or url.netloc:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(url.path))) if url.path else name
            inside += 1
            anchors = pages[target].find(id=unquote(url.fragment)) if url.fragment and target in pages else True
            if not (site / target).is_file() or not anchors:
                dead.append(f"{name}: {url.geturl()}")
    assert inside > 100 and not dead, dead


def test_nothing_is_fetched(pages):
    tags = "script[src], link[href], img[src], iframe[src]"
    fetched = {f"{name}: {tag.get('src') or tag.get('href')}" for name, soup in pages.items() for tag in soup.select(tags)
               if re.match(r"(https?:)?//", tag.get("src") or tag.get("href"))}
    assert not fetched, fetched
    assert "_static/tex-svg.js" in str(pages["13_odin.html"]), "equations need MathJax"


def test_equations_are_equations(pages):
    for name, soup in pages.items():
        article = BeautifulSoup(str(soup.select_one("article") or ""), "html.parser")
        for tag in article.select("pre, code, script, .math"):
            tag.decompose()
        assert "$" not in article.get_text(), f"{name}: an equation that was not understood"


def test_the_table_of_contents_has_every_notebook_in_reading_order(pages):
    links = [a["href"] for a in pages["index.html"].select(".bd-sidebar-primary nav a.internal")]
    rooms = "0123r4t5"    # r: reports, t: tutorials
    wanted = sorted((page(p) for p in NOTEBOOKS if p.stem != "index"), key=lambda name: (rooms.index(name[0]), name))
    assert links == ["#", *wanted]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=page)
def test_a_page_shows_what_its_notebook_shows(site, pages, path):
    article = squeezed(pages[page(path)].select_one("article").get_text())
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code" or len(squeezed(text(cell))) < 40:
            continue
        hidden = re.search(r"^#\|\s*(hide\b|echo:\s*false)", cell.source, re.MULTILINE)
        assert (squeezed(text(cell)) in article) != bool(hidden), cell.source
    assert "#|" not in article, "a directive is shown"


def test_the_picture_of_the_index_is_described(pages):
    assert pages["index.html"].select_one("article img")["alt"].startswith("Test digits in a plane")


def test_search_knows_the_words_of_the_book(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(") and "13_odin" in index and "autoencod" in index


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = build(tmp_path)
    assert done.returncode and str(tmp_path) in done.stderr and (tmp_path / "mine.txt").read_text() == "mine"
