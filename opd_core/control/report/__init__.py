"""A run's report, as one self-contained page and its Markdown twin: `writing.write_report`.

What it says (the sections in `outcome`, `expense` and `origin`, and the `samples`, made of the blocks in `content`) is
kept apart from how it is written down (`html_page` with its `chart`, and `markdown_page`), which escapes all of it.
"""
