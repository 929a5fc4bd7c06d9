"""Who in a guest may call what of the host: rules, their files, and what is wrong with these."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtagent_host.services.allowance import USERS_MAX, Allowance
from virtagent_host.services.file import PolicyError, ServicesDir, load_policy, read_rules
from virtagent_host.services.request import Caller, parse_call
from virtagent_host.services.rules import Limits, Policy
from virtagent_host.services.trusted import Untrusted, check_trusted
from virtagent_protocol.errors import Fault
from virtagent_protocol.values import Struct

ROOT = Caller(1, 0, 0, "root")
ALICE = Caller(7, 1000, 1000, "alice")
NAMELESS = Caller(7, 1001, 1001, "")

POLICY = """\
[limits]
calls = 3

[[rule]]
name = "not on test machines"
action = "deny"
services = ["backup.*"]
vms = ["test-*"]

[[rule]]
name = "backups"
action = "allow"
services = ["backup.put", "backup.get"]
users = ["root", 1000]
arguments = ["*.tar"]
run-time = 7200
input-max = 1_000_000

[[rule]]
name = "time for everybody"
action = "allow"
services = ["time"]
users = ["*"]

[[rule]]
name = "search"
action = "allow"
services = ["search"]
users = ["a*"]
arguments = ["in-*", "**"]
dashes = true
"""


@pytest.fixture
def directory(tmp_path: Path) -> ServicesDir:
    (tmp_path / "vm").mkdir()
    (tmp_path / "policy.toml").write_text(POLICY)
    return ServicesDir(str(tmp_path))


@pytest.fixture
def policy(directory: ServicesDir) -> Policy:
    return load_policy(directory, "web")


@pytest.mark.parametrize(
    ("vm", "caller", "service", "arguments", "rule"),
    [
        ("web", ROOT, "backup.put", ("a.tar",), "backups"),
        ("web", ALICE, "backup.get", ("a.tar",), "backups"),
        ("web", ALICE, "backup.remove", ("a.tar",), None),
        ("web", NAMELESS, "backup.put", ("a.tar",), None),
        ("web", ROOT, "backup.put", (), None),
        ("web", ROOT, "backup.put", ("a.tar", "b.tar"), None),
        ("web", ROOT, "backup.put", ("a.zip",), None),
        ("web", ROOT, "backup.put", ("-a.tar",), None),
        ("web", ROOT, "backup.put", ("new\nline.tar",), "backups"),
        ("test-1", ROOT, "backup.put", ("a.tar",), "not on test machines"),
        ("web", ROOT, "time", (), "time for everybody"),
        # "*" is any name, and one without a name has none.
        ("web", NAMELESS, "time", (), None),
        ("web", ROOT, "time", ("now",), None),
        ("web", ALICE, "search", ("in-mail", "-i", "--", "$(id)"), "search"),
        ("web", ALICE, "search", (), None),
        ("web", ROOT, "search", ("in-mail",), None),
        ("web", ROOT, "tim", (), None),
    ],
)
def test_the_first_rule_that_matches_in_all_decides_and_none_means_no(
    policy: Policy, vm: str, caller: Caller, service: str, arguments: tuple[str, ...], rule: str | None
) -> None:
    decision = policy.decide(vm, caller, service, arguments)
    assert (decision.rule.name if decision.rule else None) == rule
    assert decision.allowed == (rule not in (None, "not on test machines"))


def test_without_any_file_nothing_is_allowed(tmp_path: Path) -> None:
    decision = load_policy(ServicesDir(str(tmp_path)), "web").decide("web", ROOT, "time", ())
    assert not decision.allowed
    assert "no rules" in decision.why


def test_a_refusal_says_which_rule_nearly_allowed_it(policy: Policy) -> None:
    decision = policy.decide("web", ROOT, "backup.put", ("-x.tar",))
    assert "rule 'backups' would, but argument 1 begins with a dash" in str(decision)


def test_the_file_of_one_vm_goes_before_that_for_all(directory: ServicesDir) -> None:
    Path(directory.for_vm("web")).write_text(
        '[limits]\ncalls-per-user = 1\n[[rule]]\nname = "no"\naction = "deny"\nservices = ["time"]\n'
    )
    policy = load_policy(directory, "web")
    assert (
        str(policy.decide("web", ROOT, "time", ()))
        == f"rule 'no' ({directory.for_vm('web')}, line 3): denied"
    )
    assert (policy.limits.calls, policy.limits.calls_per_user) == (3, 1)
    assert load_policy(directory, "other").decide("other", ROOT, "time", ()).allowed


def test_a_rule_says_how_what_it_allows_is_run(policy: Policy) -> None:
    rule = policy.decide("web", ROOT, "backup.put", ("a.tar",)).rule
    assert rule is not None
    assert (rule.settings.run_time, rule.settings.input_max, rule.settings.output_max) == (
        7200,
        1_000_000,
        None,
    )


RULE = '[[rule]]\nname = "a"\naction = "allow"\nservices = ["x"]\nusers = ["*"]\n'


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[[rule]\n", 1, "is not TOML"),
        ('default = "deny"\n', 1, "no such key: 'default'"),
        ("\n[limit]\ncalls = 1\n", 2, "no such key: 'limit'"),
        (RULE + "\n[limits]\ncall = 1\n", 8, "no such key in [limits]: 'call'"),
        ("[limits]\ncalls = -1\n", 2, "calls must be a number"),
        ("[limits]\ncalls = true\n", 2, "calls must be a number"),
        (RULE + 'uesrs = ["root"]\n', 6, "no such key: 'uesrs'"),
        ('[[rule]]\naction = "allow"\n', 1, "name must be"),
        ('[[rule]]\nname = "a"\naction = "permit"\n', 3, 'action must be "allow" or "deny"'),
        ('[[rule]]\nname = "a"\naction = "allow"\nusers = ["*"]\n', 1, "services is missing"),
        ('[[rule]]\nname = "a"\naction = "allow"\nservices = ["*"]\n', 1, "users is missing"),
        (RULE + 'services = ["y"]\n', 6, "is not TOML"),
        ('[[rule]]\nname = "a"\naction = "allow"\nservices = "x"\n', 4, "services must be an array"),
        (RULE + RULE, 6, "another rule is called 'a'"),
        (RULE + 'arguments = ["**", "x"]\n', 6, "must be the last"),
        (RULE + 'run-time = "1h"\n', 6, "run-time must be a number of seconds"),
        (RULE + "run-time = nan\n", 6, "run-time must be a number of seconds"),
        (RULE + 'input-max = "1G"\n', 6, "input-max must be a number of bytes"),
        (RULE + "vms = []\n", 6, "vms must not be empty"),
        (RULE + "dashes = 1\n", 6, "dashes must be true or false"),
        (RULE.replace('["*"]', "[-1]"), 5, "-1 is neither a name nor the number of a user"),
        ('[[rule]]\nname = "a"\naction = "deny"\nservices = ["*"]\nrun-time = 1\n', 5, "goes with action"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(PolicyError) as caught:
        read_rules(str(file))
    assert str(file) in str(caught.value)
    assert f"line {line}" in str(caught.value)
    assert what in str(caught.value)


def test_the_file_of_one_vm_has_no_vms(tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text(RULE + 'vms = ["web"]\n')
    read_rules(str(file))
    with pytest.raises(PolicyError, match="line 6: rule 'a': this file is for one VM"):
        read_rules(str(file), of_vm=True)


def test_a_policy_that_others_may_write_to_is_not_used(directory: ServicesDir) -> None:
    os.chmod(directory.for_all, 0o664)
    with pytest.raises(PolicyError, match=r"others may write to .*policy.toml .*chmod go-w"):
        load_policy(directory, "web")


def test_what_is_beyond_a_directory_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    os.chmod(tmp_path / "open", 0o777)
    (tmp_path / "open/file").touch()
    (tmp_path / "link").symlink_to("open/file")
    for path in ("open/file", "link"):
        with pytest.raises(Untrusted, match=r"others may write to .*/open "):
            check_trusted(str(tmp_path / path))
    # As in /tmp: nobody can replace there what is another's.
    os.chmod(tmp_path / "open", 0o1777)
    assert check_trusted(str(tmp_path / "link")) == os.path.realpath(tmp_path / "open/file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_another_user_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 65534, 65534)
    with pytest.raises(Untrusted, match="belongs to user id 65534"):
        check_trusted(str(tmp_path / "file"))


def call(**members: object) -> Struct:
    value: dict[str, object] = {
        "service": "x",
        "arguments": [],
        "caller": {"pid": 1, "uid": 2, "gid": 3, "user": "alice"},
        "io": 2,
        "status": 4,
    }
    value.update(members)
    return value  # type: ignore[return-value]


@pytest.mark.parametrize(
    "members",
    [
        {"service": "../bin/sh"},
        {"service": ""},
        {"service": "-x"},
        {"service": "x" * 65},
        {"service": "x\n"},
        {"arguments": ["a"] * 257},
        {"arguments": "a"},
        {"caller": None},
        {"caller": {"pid": 1, "uid": -1, "gid": 3}},
        {"caller": {"pid": 1, "uid": 2**32, "gid": 3}},
        {"caller": {"pid": 1, "uid": True, "gid": 3}},
        {"io": "2"},
    ],
)
def test_a_call_that_is_none_is_refused(members: dict[str, object]) -> None:
    with pytest.raises(Fault):
        parse_call(call(**members))


@pytest.mark.parametrize("user", ["x\ny", "a b", "$(id)", "-x", "", "1000", "x" * 200, "\x1b[31m", "é"])
def test_what_cannot_be_the_name_of_a_user_is_left_out(user: str) -> None:
    caller = {"pid": 1, "uid": 1000, "gid": 3, "user": user}
    assert parse_call(call(caller=caller)).caller == Caller(1, 1000, 3, "")


def test_words_of_a_program_are_text_and_bytes_without_nul() -> None:
    words = parse_call(call(arguments=["-a", b"\xff\n", "$(id)"])).words()
    assert [os.fsencode(word) for word in words] == [b"-a", b"\xff\n", b"$(id)"]
    for wrong in ([5], ["a\0b"], [b"\0"]):
        with pytest.raises(Fault):
            parse_call(call(arguments=wrong)).words()
    with pytest.raises(Fault, match="more than 32768 bytes"):
        parse_call(call(arguments=["x" * 20_000, b"y" * 20_000]))


def test_rules_see_other_values_as_json() -> None:
    assert parse_call(call(arguments=[{"b": 1, "a": [None]}, 5, "5"])).texts == (
        '{"a": [null], "b": 1}',
        "5",
        "5",
    )


LIMITS = Limits(calls=3, calls_per_user=2, per_minute=6, per_minute_per_user=4)


def test_one_user_cannot_take_the_places_of_all() -> None:
    allowance = Allowance()
    allowance.take(1000, LIMITS, 0.0)
    allowance.take(1000, LIMITS, 0.0)
    with pytest.raises(Fault, match="2 calls of this user are running"):
        allowance.take(1000, LIMITS, 0.0)
    allowance.take(0, LIMITS, 0.0)
    with pytest.raises(Fault, match="3 calls of this guest are running"):
        allowance.take(1, LIMITS, 0.0)
    allowance.give_back(1000)
    allowance.take(1, LIMITS, 0.0)
    assert allowance.running == 3


def test_calls_in_a_minute_are_bounded_and_come_back() -> None:
    allowance = Allowance()

    def begin(uid: int, now: float) -> None:
        allowance.take(uid, LIMITS, now)
        allowance.give_back(uid)

    for _ in range(4):
        begin(1000, 0.0)
    with pytest.raises(Fault, match="this user may begin 4 calls in a minute"):
        begin(1000, 0.0)
    begin(0, 0.0)
    begin(0, 0.0)
    with pytest.raises(Fault, match="this guest may begin 6 calls in a minute"):
        begin(1, 0.0)
    begin(1, 10.1)
    begin(1000, 60.0)


def test_a_guest_that_invents_users_gains_nothing_and_costs_no_memory() -> None:
    allowance = Allowance()
    begun = 0
    for uid in range(10 * USERS_MAX):
        try:
            allowance.take(uid, LIMITS, 0.0)
        except Fault:
            continue
        allowance.give_back(uid)
        begun += 1
    assert begun == LIMITS.per_minute
    assert len(allowance._users) <= USERS_MAX
    assert allowance.running == 0
