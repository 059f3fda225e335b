"""HTML parser for tests."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Separates code from visible text."""

    code_tags = ("script",)  # elements whose text is code

    def __init__(self, text: str):
        super().__init__()
        self.code, self.visible_text, self.inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.code += [f"{key}={value}" for key, value in attributes if key.startswith("on")]

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in self.code_tags:
            self.code.append(data)
        else:
            self.visible_text += data
