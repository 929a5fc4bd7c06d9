"""Addresses and forwards, as users and the wire write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtagent_host.forward.spec import parse_forward
from virtagent_protocol.address import AddressError, TcpAddress, UnixAddress, parse_address

HOSTS = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]{1,10}){0,3}", fullmatch=True),
    st.ip_addresses().map(str),
)
PORTS = st.integers(1, 65535)
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=25).map(
    lambda text: f"/{text}"
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:127.0.0.1:22", TcpAddress("127.0.0.1", 22)),
        ("localhost:22", TcpAddress("localhost", 22)),
        ("tcp:22", TcpAddress("tcp", 22)),
        ("[::1]:22", TcpAddress("::1", 22)),
        ("tcp:[fe80::1%eth0]:22", TcpAddress("fe80::1%eth0", 22)),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
        ("/run/a:b", UnixAddress("/run/a:b")),
    ],
)
def test_what_is_an_address(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not an address: write tcp:HOST:PORT or unix:/PATH"),
        ("host", "is not an address"),
        ("host:", "'' is not a port"),
        ("host:022", "'022' is not a port"),
        ("host:65536", "'65536' is not a port"),
        ("host:\u0663", "is not a port"),
        ("host:0", "nobody can be reached at port 0"),
        (":22", "'' is not a host"),
        ("*:22", r"'\*' is not a host"),
        ("::1:22", "write an IPv6 address in brackets"),
        ("[::g]:22", "that is no IPv6 address"),
        ("[fe80::1%]x]:22", "is no interface"),
        ("-x:22", "'-x' is not a host"),
        ("a b:22", "'a b' is not a host"),
        ("unix:run/x", "'run/x' is not an absolute path"),
        ("/" + "x" * 107, "at most 107 bytes"),
        ("/a\0b", "no NUL"),
        ("/\udc80", "is not text"),
    ],
)
def test_what_is_none(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        parse_address(text)


@given(st.builds(TcpAddress, HOSTS, PORTS) | st.builds(UnixAddress, PATHS))
def test_an_address_is_written_as_it_is_read(address: TcpAddress | UnixAddress) -> None:
    assert parse_address(str(address)) == address


@given(st.text() | st.text(":/[]*0123456789abu%tcpnix."), st.booleans())
def test_any_text_is_an_address_or_refused(text: str, listening: bool) -> None:
    try:
        address = parse_address(text, listening=listening)
    except AddressError:
        return
    assert parse_address(str(address), listening=listening) == address


@pytest.mark.parametrize(
    ("text", "listen", "connect"),
    [
        ("8080:web:80", "tcp:127.0.0.1:8080", "tcp:web:80"),
        ("localhost:8080:web:80", "tcp:127.0.0.1:8080", "tcp:web:80"),
        ("*:8080:web:80", "tcp:*:8080", "tcp:web:80"),
        (":8080:web:80", "tcp:*:8080", "tcp:web:80"),
        ("[::1]:8080:[::2]:80", "tcp:[::1]:8080", "tcp:[::2]:80"),
        ("0:web:80", "tcp:127.0.0.1:0", "tcp:web:80"),
        ("8080:/run/x", "tcp:127.0.0.1:8080", "unix:/run/x"),
        ("a:8080:/run/x", "tcp:a:8080", "unix:/run/x"),
        ("/run/x:web:80", "unix:/run/x", "tcp:web:80"),
        ("/run/x:/run/y", "unix:/run/x", "unix:/run/y"),
    ],
)
def test_what_is_a_forward(text: str, listen: str, connect: str) -> None:
    forward = parse_forward(text)
    assert (str(forward.listen), str(forward.connect)) == (listen, connect)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it has 1 parts; the form is"),
        ("8080", "it has 1 parts"),
        ("web:80", "it has 2 parts"),
        ("a:b:8080:web:80", "it has 5 parts"),
        ("8080:web:0", "nobody can be reached at port 0"),
        ("8080:web:http", "'http' is not a port"),
        ("::1:8080:web:80", "it has 6 parts"),
        ("[::1]8080:web:80", "brackets belong around a whole IPv6 address"),
        ("x[::1]:8080:web:80", "brackets belong around"),
        ("8080:*:80", r"'\*' is not a host"),
    ],
)
def test_what_is_no_forward(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        parse_forward(text)


@given(st.text() | st.text(":/[]*0123456789ab"))
def test_any_text_is_a_forward_or_refused(text: str) -> None:
    try:
        parse_forward(text)
    except AddressError:
        return
