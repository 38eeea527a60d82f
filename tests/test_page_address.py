"""The printed address of the page is one that a browser takes."""

from __future__ import annotations

import socket
from urllib.parse import parse_qs, urlsplit

import pytest

from common import wire
from common.console import addresses
from common.settings import Settings, ViewerSettings
from tests.conftest import Processes, wait_for
from tests.pages import Page, Producer


@pytest.mark.parametrize("token", ["geheim", "a+b/c=d#e&f%20g?h", "schlüssel mit platz"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "fe80::1%eth0"])
def test_the_address_has_host_port_and_token(host: str, token: str) -> None:
    line = addresses(Settings(viewer=ViewerSettings(host=host, port=81, token=token)))[0]
    url = urlsplit(line.removeprefix("viewer: "))
    assert (url.hostname, url.port, url.path, url.fragment) == (host.replace("%", "%25"), 81, "/", "")
    assert parse_qs(url.query) == {"token": [token]}


def test_without_a_token_there_is_none() -> None:
    assert addresses(Settings(viewer=ViewerSettings(host="::1", port=81)))[0] == "viewer: http://[::1]:81/"


def test_the_page_opens_by_its_printed_address(processes: Processes, producer: Producer) -> None:
    page = Page(processes, token="a+b/c=d#e&f%20g")
    assert page.get(wire.page("", 0, "a+b/c=d#e&f%20g").removeprefix("http://:0"))[0] == 200


def test_the_viewer_says_an_ipv6_address_as_browsers_take_it(processes: Processes, settings: Settings) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    viewer = processes.start("workers.viewer", "--set", "viewer.host=::1", "--set", "viewer.port=0")
    wait_for(lambda: "http://[::1]:" in viewer.output())
