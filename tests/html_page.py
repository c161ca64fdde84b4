"""A page of HTML as tags and texts."""

from html.parser import HTMLParser

VOID = ("img", "meta", "link", "source", "br")


class Page(HTMLParser):
    """Tags with their attributes, the text of each section, figures and links; all is closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.parts, self.part, self.open = [], {"": ""}, "", []
        self.feed(str(html))
        self.close()
        assert self.open == []
        self.figures = [attributes["id"] for tag, attributes in self.tags if tag == "figure"]
        keys = ("href", "src", "srcset")
        self.loaded = [own[key] for _, own in self.tags for key in keys if key in own]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.part = dict(attrs)["id"]
            self.parts[self.part] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.parts[self.part] += data + " "

    def text(self, part=""):
        return " ".join(self.parts[part].split())
