"""The page's files as they are served: from memory, typed, under a policy that keeps everything on this host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.assets import PAGE

FOLDER = Path(__file__).parents[2] / "service" / "page"


def test_every_file_of_the_page_is_served() -> None:
    assert {name for name, _ in PAGE.values()} == {file.name for file in FOLDER.iterdir()}


@pytest.mark.parametrize("path", PAGE)
def test_a_file_is_served_with_its_type_and_the_policy(client: TestClient, path: str) -> None:
    name, media_type = PAGE[path]
    response = client.get(path)
    assert response.status_code == 200
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"] == media_type
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert response.headers["x-content-type-options"] == "nosniff"
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    again = client.get(path, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", sorted(file.name for file in FOLDER.iterdir()))
def test_nothing_is_fetched_from_elsewhere(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"^\s*//.*$|(?<=\s)// .*$", "", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_no_script_and_no_style_stands_in_the_html(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?![^>]*\ssrc=)", text)
    # Every address is a file that is served, or a part of the API.
    assert set(re.findall(r'(?:src|href)="([^"]+)"', text)) <= {*PAGE, "/openapi.json"}


@pytest.mark.parametrize("name", ["app.js", "docs.js"])
def test_text_is_never_parsed_as_html(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(.style", text)


def test_every_control_has_a_label() -> None:
    text = (FOLDER / "index.html").read_text("utf-8")
    controls = set(re.findall(r'<(?:input|textarea|select)[^>]*\sid="([^"]+)"', text))
    assert controls == set(re.findall(r'<label[^>]*\sfor="([^"]+)"', text))
    assert controls == {"context", "question", "sample", "key"}


def test_the_script_finds_everything_that_it_names() -> None:
    html, script = ((FOLDER / name).read_text("utf-8") for name in ("index.html", "app.js"))
    assert set(re.findall(r'\$\("([a-z-]+)"\)', script)) <= set(re.findall(r'\sid="([^"]+)"', html))
