"""What hostile peers and fuzzers found once, each as small as it can be told."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.unit.linkpair import linked, make_link, ready
from virtagent_host.bridge import jsonstream
from virtagent_host.bridge.jsonstream import JsonSplitter, JsonValue, ParseError
from virtagent_protocol import greeting, xmlrpc
from virtagent_protocol.errors import FaultCode, LocalProtocolError, RemoteFault, RemoteProtocolError
from virtagent_protocol.limits import ELEMENTS_MAX, FAULT_STRING_MAX, MARKUP_MAX, PROTOCOLS_MAX
from virtagent_protocol.linkstate import LinkState
from virtagent_protocol.messages import Cancel, Message, Request, Response, encode
from virtagent_protocol.reader import Drop, DropCause, MessageReader
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Hello, Role
from virtagent_protocol.values import Value


def response(value_element: bytes) -> bytes:
    return b"<methodResponse><params><param>" + value_element + b"</param></params></methodResponse>"


def long_fault(code: int) -> bytes:
    """A fault whose message is a megabyte: our own encoder cuts it."""
    text = b"<string>%b</string>" % (b"x" * 10**6)
    return xmlrpc.encode_fault(code, "").replace(b"<string></string>", text)


# --- Documents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "refused_for"),
    [
        (b"<value><array><data>" + b"<value/>" * ELEMENTS_MAX, "elements"),
        (b"<value>" + b"<nil/>" * ELEMENTS_MAX, "elements"),
        (b"<value a=''/>", "attributes"),
        (b"<value " + b" ".join(b"a%d=''" % n for n in range(100_000)) + b"/>", "a tag or comment"),
        (b"<value " + b" ".join(b"xmlns:a%d='b'" % n for n in range(50_000)) + b"/>", "a tag or comment"),
        (b"<!--" + b"x" * (4 * MARKUP_MAX) + b"--><value/>", "a tag or comment"),
    ],
    ids=["values", "nils", "an-attribute", "attributes", "namespaces", "comment"],
)
def test_a_document_that_costs_more_time_than_its_length_is_refused(value: bytes, refused_for: str) -> None:
    with pytest.raises(RemoteProtocolError, match=refused_for):
        xmlrpc.decode_response(response(value))


def test_text_of_any_length_is_no_markup() -> None:
    text = b"x" * (10 * MARKUP_MAX)
    assert xmlrpc.decode_response(response(b"<value>" + text + b"</value>")) == (text.decode(), None)
    cdata = b"<value><![CDATA[" + text + b"<a b='']]></value>"
    assert xmlrpc.decode_response(response(cdata)) == (text.decode() + "<a b=''", None)


def test_what_a_reader_would_refuse_is_not_written() -> None:
    array: list[Value] = [0] * (ELEMENTS_MAX // 2)
    with pytest.raises(LocalProtocolError, match="elements"):
        xmlrpc.encode_result(array)
    body = xmlrpc.encode_result(array[10:])
    assert xmlrpc.decode_response(body) == (array[10:], None)


@pytest.mark.parametrize(
    "text", ["A", "AA", "AAA", "AAAAA", "AA=A", "====", "AA===", "=AAA", "\u00a0AAAA", "\x0cAAAA"]
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        xmlrpc.decode_response(response(f"<value><base64>{text}</base64></value>".encode()))


def test_what_a_peer_names_is_cut_in_errors() -> None:
    name = "\u202e" * 100_000
    with pytest.raises(RemoteProtocolError) as caught:
        xmlrpc.decode_call(f"<methodCall><methodName>{name}</methodName></methodCall>".encode())
    assert len(str(caught.value)) < 500
    assert len(xmlrpc.encode_fault(1, name)) < 10 * FAULT_STRING_MAX
    long_fault = xmlrpc.encode_fault(1, "").replace(
        b"<string></string>", b"<string>" + b"x" * 10**6 + b"</string>"
    )
    assert xmlrpc.decode_response(long_fault) == (None, (1, "x" * FAULT_STRING_MAX))


def test_a_hello_with_too_many_versions_is_refused() -> None:
    struct = Hello(Role.GUEST, "0" * 16, "x", protocols=("1.0",) * (PROTOCOLS_MAX + 1)).to_value()
    with pytest.raises(RemoteProtocolError, match="1 to 16"):
        Hello.from_value(struct)


# --- The reader --------------------------------------------------------------------------------------


def test_bytes_that_were_not_looked_at_yet_are_not_given_up() -> None:
    reader = MessageReader()
    reader.push(encode(Cancel("a")) + encode(Cancel("b"))[:-5])
    events = reader.events()
    assert next(events) == Cancel("a")
    reader.give_up()
    reader.push(encode(Cancel("b"))[-5:])
    assert list(events) == [Cancel("b")]


def test_who_leaves_the_events_can_go_on_with_others() -> None:
    reader = MessageReader()
    reader.push(encode(Cancel("a")) + encode(Cancel("b")) + encode(Cancel("c"))[:20])
    assert next(reader.events()) == Cancel("a")
    assert list(reader.events()) == [Cancel("b")]
    reader.give_up()
    assert list(reader.events()) == [Drop(DropCause.ABANDONED)]


#: Of a message that was cut short, in a body.
FRAGMENTS = 200_000

# --- The link ----------------------------------------------------------------------------------------


async def in_session(*messages: Message) -> tuple[int, int]:
    """Let a guest say these messages in a session; return how many messages came back, and how many drops."""
    async with linked(make_link(Role.HOST), make_link(Role.GUEST)) as pair:
        assert pair.host.session is not None
        await trio.testing.wait_all_tasks_blocked()  # the last of the hellos
        out = pair.host.counters.messages_out
        drops = pair.host.counters.drops.total()
        for message in messages:
            fields = {**message.__dict__, "session": pair.host.session.id}
            pair.host_stream.receive_stream.put_data(encode(type(message)(**fields)))
        await trio.testing.wait_all_tasks_blocked()
        assert ready(pair.host.status)
        assert await pair.guest.call("va.ping") is None
        return pair.host.counters.messages_out - out - 1, pair.host.counters.drops.total() - drops


async def test_a_refusal_that_quotes_megabytes_does_not_end_the_link() -> None:
    name = b"<methodCall><methodName>" + b"\xc2\x9b" * 1_000_000 + b"</methodName></methodCall>"
    help_for = xmlrpc.encode_call("system.methodHelp", ["x" * 2_000_000])
    assert await in_session(Request("a", name), Request("b", help_for)) == (2, 0)


async def test_a_call_that_waits_for_its_reply_to_be_written_does_not_hold_its_parameters() -> None:
    host = make_link(Role.HOST)
    async with linked(host, make_link(Role.GUEST)) as pair:
        assert host.session is not None
        host_stream = pair.host_stream

        async def never() -> None:
            await trio.sleep_forever()

        host_stream.send_stream.send_all_hook = never
        for number in range(3):
            body = xmlrpc.encode_call("system.methodHelp", ["x" * 1000])
            host_stream.receive_stream.put_data(encode(Request(f"t-{number}", body, host.session.id)))
        await trio.testing.wait_all_tasks_blocked()
        jobs = list(host._serving._jobs.values())
        assert len(jobs) == 3
        assert all(job.params == [] for job in jobs)


async def test_a_multicall_stops_when_its_results_fit_no_message() -> None:
    registry = Registry()
    made = 0

    @registry.method("t.big")
    async def big(call: Call) -> bytes:
        """Return a megabyte."""
        nonlocal made
        made += 1
        return bytes(1024 * 1024)

    calls: list[Value] = [{"methodName": "t.big", "params": []}] * 100
    async with linked(make_link(Role.HOST, registry), make_link(Role.GUEST)) as pair:
        with pytest.raises(RemoteFault, match="of 100 calls") as caught:
            await pair.guest.call("system.multicall", calls)
    assert caught.value.code == FaultCode.TOO_LARGE
    assert made == 2


async def test_hellos_are_heard_at_a_bounded_rate_and_the_rest_is_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = make_link(Role.HOST), make_link(Role.GUEST)
    async with linked(host, guest) as pair:
        before = host.counters.sessions
        for number in range(1000):
            struct = Hello(Role.GUEST, f"{number:016x}", f"agent {number}").to_value()
            data = encode(Request("x", xmlrpc.encode_call("va.hello", [struct])))
            pair.host_stream.receive_stream.put_data(data)
        await trio.testing.wait_all_tasks_blocked()
        assert 10 < host.counters.sessions - before <= greeting.HELLO_BURST
        assert host.counters.drops["overload"] >= 1000 - greeting.HELLO_BURST
        # The good guest repeats its hello, and is heard.
        with trio.fail_after(60):
            await host.wait_for(lambda status: "test-guest" in status.reason)
            assert await host.call("va.ping") is None


async def test_reasons_are_short_whatever_a_peer_says_in_its_fault(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = make_link(Role.HOST)
    stream, other = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run, stream)
        (hello,) = MessageReader().feed(await other.receive_some())
        assert isinstance(hello, Request)
        body = xmlrpc.encode_fault(4, "").replace(
            b"<string></string>", b"<string>" + b"x" * 10**6 + b"</string>"
        )
        await other.send_all(encode(Response(hello.tag, body)))
        status = await host.wait_for(lambda status: "refused" in status.reason)
        assert status.state is LinkState.GREETING
        assert len(status.reason) < 2 * FAULT_STRING_MAX
        nursery.cancel_scope.cancel()


async def test_other_tasks_have_their_turn_while_a_garbled_body_is_searched() -> None:
    host = make_link(Role.HOST)
    async with linked(host, make_link(Role.GUEST)) as pair:
        garbled = encode(Request("t", b"\xffa" * (FRAGMENTS)))[:-1] + b"x"
        turns = 0

        async def count() -> None:
            nonlocal turns
            while host.counters.drops["cut-short"] < FRAGMENTS:
                turns += 1
                await trio.lowlevel.checkpoint()

        pair.nursery.start_soon(count)
        pair.host_stream.receive_stream.put_data(garbled)
        while host.counters.drops["cut-short"] < FRAGMENTS - 1:
            await trio.lowlevel.checkpoint()
    assert turns > 50


# --- The bridge's JSON -------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'"",', b"1,", b"'',"])
def test_json_of_too_many_parts_costs_one_error_however_it_is_cut(unit: bytes) -> None:
    data = b"[" + unit * jsonstream.MARKS_MAX + b"1]\n{}"
    events = list(JsonSplitter().feed(data))
    assert events == [ParseError("JSON token count limit exceeded"), JsonValue({})]
    splitter = JsonSplitter()
    assert [
        event for at in range(0, len(data), 999) for event in splitter.feed(data[at : at + 999])
    ] == events
