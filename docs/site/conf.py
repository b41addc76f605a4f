"""Settings of Sphinx for the site that `make site` builds."""

project = "jaxdistill"
author = "the engineers of jaxdistill"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "jaxdistill"
html_copy_source = False
smartquotes = False  # specs are copied
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path: list[str] = []
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
highlight_language = "text"
suppress_warnings = ["myst.header"]
