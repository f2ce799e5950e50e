"The book as a web site (Sphinx): `make book`."
from importlib.util import find_spec

project = author = "clad"
html_title = "clad"
root_doc = "index"
extensions = ["myst_nb", "sphinx.ext.mathjax"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"    # tables in outputs
nb_ipywidgets_js = {}                 # would be fetched
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True        # $$ inside a paragraph, as in Jupyter
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "navbar_persistent": [],          # the side bar has a search field already
}
mathjax = find_spec("sphinx-mathjax-offline").submodule_search_locations[0] + "/static/mathjax/tex-svg.js"
mathjax_path = "tex-svg.js"           # one file, read from the disk: equations need no network
html_static_path = ["style", mathjax]
html_css_files = ["book.css"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False      # needs a server
