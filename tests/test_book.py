"The book as a web site: built without a warning, whole without a network, every link leads somewhere."
import html
import json
import posixpath
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

missing = [name for name in ("myst_nb", "sphinx_book_theme") if not find_spec(name)]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book") / "site"
    done = subprocess.run([sys.executable, ROOT / "tools/book.py", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(folder / "index.html") in done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, str]:
    files = (p for p in site.rglob("*.html") if "_static" not in p.parts)    # there lie templates of the theme
    return {p.relative_to(site).as_posix(): p.read_text(encoding="utf-8") for p in files}


def links(page: str, tags: str = "[a-z]+") -> list[str]:
    found = re.findall(rf"""<(?:{tags})\b[^>]*?\s(?:href|src)=(?:"([^"]*)"|'([^']*)')""", page)
    return [html.unescape(double or single) for double, single in found]


def article(page: str, without: str = "^$") -> str:
    "The text of a page, without white space; `without`: a pattern of elements to leave out."
    body = page[page.index("<article"):page.index("</article>")]
    body = re.sub(without, "", body, flags=re.DOTALL)
    return squeezed(html.unescape(re.sub(r"<[^>]*>", "", body)))


def page(notebook: Path) -> str:
    return notebook.relative_to(ROOT / "nbs").with_suffix(".html").as_posix()


def code(source: str) -> str:
    return squeezed(re.sub(r"^#\|.*$", "", source, flags=re.MULTILINE))


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_every_link_leads_somewhere(site, pages):
    dead, inside = [], 0
    for name, text in pages.items():
        for link in links(text):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            inside += 1
            path = unquote(url.path) or posixpath.basename(name)
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            lost = url.fragment and target in pages and f'id="{url.fragment}"' not in pages[target]
            if lost or not (site / target).is_file():
                dead.append(f"{name}: {link}")
    assert inside > 500 and not dead, dead


def test_nothing_is_fetched(pages):
    fetched = {f"{name}: {link}" for name, text in pages.items() for link in links(text, "script|link|img|iframe")
               if re.match(r"(https?:)?//", link)}
    assert not fetched, fetched
    assert any("_static/tex-svg.js" in link for link in links(pages["13_odin.html"])), "equations need MathJax"


def test_equations_are_understood(pages):
    for name in map(page, NOTEBOOKS):
        text = article(pages[name], r'<(pre|code|script)\b.*?</\1>|<(span|div) class="math.*?</\2>')
        assert "$" not in text, f"{name}: {text[max(text.index('$') - 60, 0):][:120]}"


def test_the_table_of_contents_has_every_notebook_in_reading_order(pages):
    index = pages["index.html"]
    side = index[index.index('<nav class="bd-links'):]
    rooms = "0123r4t5"    # r: reports, t: tutorials
    wanted = sorted((page(p) for p in NOTEBOOKS if p.stem != "index"), key=lambda name: (rooms.index(name[0]), name))
    assert links(side[:side.index("</nav>")], "a") == ["#", *wanted]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=page)
def test_a_page_shows_what_its_notebook_shows(pages, path):
    text = article(pages[page(path)])
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and len(code(source)) >= 40:
            hidden = re.search(r"^#\|\s*(hide\b|echo:\s*false)", source, re.MULTILINE)
            assert (code(source) in text) != bool(hidden), source
    assert "#|" not in text, "a directive is shown"


def test_the_picture_of_the_index_is_shown_and_described(pages):
    assert re.search(r'<img alt="Mean images of the groups[^>]*src="_images/', pages["index.html"])


def test_search_knows_the_words_of_the_book(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(") and "13_odin" in index and "autoencod" in index


def test_a_folder_with_something_else_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import book
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["book.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="name another folder"):
        book.main()
    assert (tmp_path / "mine.txt").read_text() == "mine"
