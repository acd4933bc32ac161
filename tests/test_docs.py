"""Check that the pages name what exists, and leave nothing out."""

import re
from pathlib import Path

import bnlasagne

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def ids(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", read(page))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_links_lead_to_headings():
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([\w/-]+\.md)#([^)]+)\)",
                                          read(page)):
            titles = re.findall(r"^#+ (.*)$", read(page.parent / target),
                                re.M)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                     for title in titles]
            assert heading in slugs, f"{page.name}: {target}#{heading}"


def test_inside_names_files_of_the_package():
    rows = re.findall(r"^\| ….*\| (.*) \|$", read("docs/inside.md"), re.M)
    named = re.findall(r"`(\w+/\w+\.py)`", " ".join(rows))
    missing = [name for name in named
               if not (ROOT / "bnlasagne" / name).is_file()]
    assert len(named) >= len(rows) > 20 and not missing


def test_contributing_names_all_rooms():
    named = re.findall(r"^  (\w+)/", read("CONTRIBUTING.md"), re.M)
    folders = [path.parent.name
               for path in (ROOT / "bnlasagne").glob("*/__init__.py")]
    assert sorted(named) == sorted(folders)


def test_reference_has_all_public_names():
    # Other classes, of what public functions return, have whole paths.
    named = re.findall(r"^\.\. auto\w+:: (?:bnlasagne\.)?(\w+)$",
                       read("docs/api.md"), re.M)
    assert sorted(named) == sorted(bnlasagne.__all__)


@pytest.mark.parametrize("listing", ["README.md", "docs/index.md"])
def test_all_pages_are_listed(listing):
    text = read(listing)
    missing = [page.stem for page in (ROOT / "docs").glob("*.md")
               if page.name != "index.md"
               and not re.search(rf"\b{page.stem}(\.md\)|$)", text, re.M)]
    assert missing == (["api"] if listing == "README.md" else [])


def test_readme_has_two_screens():
    lines = read("README.md").splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 120
