"""What lists and rules come to, and which files are no policies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from virtagent_guest.methods import all_methods
from virtagent_guest.policy.file import PolicyError, load_policy, read_rules
from virtagent_guest.policy.remarks import remarks
from virtagent_guest.policy.rules import ALWAYS, Policy
from virtagent_guest.policy.settings import PolicySettings
from virtagent_guest.policy.subject import SUBJECTS, Arguments
from virtagent_protocol.errors import Fault, FaultCode

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def parsed(file: Path, text: str) -> Policy:
    file.write_text(text)
    return load_policy(PolicySettings(file=str(file)))


def decided(
    policy: Policy, method: str, *arguments: Arguments | str | bytes | list[str], origin: str = "host"
) -> str:
    decision = policy.decide(method, list(arguments), origin)  # type: ignore[arg-type]
    return f"{'allowed' if decision.allowed else 'forbidden'} by {decision.rule}"


# --- Lists, as qemu-ga has them ------------------------------------------------------------------------


@pytest.fixture
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("virtagent_guest.policy.file.DEFAULT_FILE", str(tmp_path / "none"))


def lists(allow: list[str] | None = None, block: list[str] | None = None) -> Policy:
    return load_policy(PolicySettings().with_lists(allow, block))


@pytest.mark.usefixtures("no_default_file")
def test_without_lists_and_file_everything_is_allowed() -> None:
    assert decided(lists(), "va.shutdown") == "allowed by no policy"
    assert not lists().in_force


@pytest.mark.usefixtures("no_default_file")
def test_an_allow_list_refuses_the_rest_and_a_block_list_wins_over_it() -> None:
    policy = lists(["va.getfile,guest-info", "guest.ping"], ["guest-ping"])
    assert decided(policy, "va.getfile", "/etc/motd") == "allowed by no policy"
    assert decided(policy, "guest.info") == "allowed by no policy"
    assert decided(policy, "va.shutdown") == "forbidden by allow-rpcs"
    assert decided(policy, "guest-ping") == "forbidden by block-rpcs"


@pytest.mark.usefixtures("no_default_file")
def test_an_empty_allow_list_is_one_that_allows_nothing() -> None:
    assert decided(lists(allow=[""]), "va.getfile", "/x") == "forbidden by allow-rpcs"


@pytest.mark.usefixtures("no_default_file")
@pytest.mark.parametrize("method", sorted(ALWAYS))
def test_what_tells_a_guest_that_forbids_from_one_that_is_dead_is_always_answered(method: str) -> None:
    policy = lists(allow=[""], block=[method])
    assert decided(policy, method) == "allowed by always"
    assert not policy.forbids(method)


def test_lists_of_file_and_command_line_add_up() -> None:
    settings = PolicySettings(allow=("a",), block=("b",)).with_lists(["c,d", "e"], ["f"])
    assert (settings.allow, settings.block) == (("a", "c", "d", "e"), ("b", "f"))


# --- Rules ---------------------------------------------------------------------------------------------

RULES = """
default = "deny"

[[rule]]
name = "no keys"
action = "deny"
methods = ["*"]
read = ["/etc/ssl/private/**"]

[[rule]]
name = "etc"
action = "allow"
methods = ["va.getfile", "guest-file-open"]
read = ["/etc/**"]

[[rule]]
name = "drop box"
action = "allow"
methods = ["guest-file-open"]
read = ["/opt/in/*"]
write = ["/opt/in/*"]

[[rule]]
name = "state"
action = "allow"
methods = ["guest-exec"]
run = [["/usr/sbin/nothing", "status", "*"], ["/usr/sbin/whatever", "**"]]
env = ["LC_*"]

[[rule]]
name = "passwords"
action = "allow"
methods = ["guest-set-user-password"]
user = ["app*"]

[[rule]]
name = "info for qga"
action = "allow"
methods = ["guest-get-*"]
origin = ["qga"]
"""


@pytest.mark.parametrize(
    ("call", "decision"),
    [
        (("va.getfile", "/etc/passwd"), "allowed by etc"),
        (("va.getfile", "/etc/ssl/private/key"), "forbidden by no keys"),
        (("va.getfile", "/etc/../etc//ssl/./private/key"), "forbidden by no keys"),
        (("va.getfile", "/opt/other"), "forbidden by default"),
        (("guest-file-open", {"path": "/etc/passwd"}), "allowed by etc"),
        (("guest-file-open", {"path": "/etc/passwd", "mode": "r+"}), "forbidden by default"),
        (("guest-file-open", {"path": "/etc/passwd", "mode": "a"}), "forbidden by default"),
        (("guest-file-open", {"path": "/opt/in/new", "mode": "w+"}), "allowed by drop box"),
        (("guest-file-open", {"path": "/opt/in/sub/new", "mode": "w"}), "forbidden by default"),
        (("guest-file-open", {"path": 7}), "forbidden by no keys"),
        (("guest-file-open",), "forbidden by no keys"),
        (("guest-exec", {"path": "/usr/sbin/nothing", "arg": ["status", "x"]}), "allowed by state"),
        (("guest-exec", {"path": "/usr/sbin/nothing", "arg": ["status"]}), "forbidden by default"),
        (("guest-exec", {"path": "/usr/sbin/nothing", "arg": ["status", "x", "y"]}), "forbidden by default"),
        (("guest-exec", {"path": "/usr/sbin/nothing", "arg": ["stop", "x"]}), "forbidden by default"),
        (("guest-exec", {"path": "nothing", "arg": ["status", "x"]}), "forbidden by default"),
        (("guest-exec", {"path": "/usr/sbin/whatever"}), "allowed by state"),
        (("guest-exec", {"path": "/usr/sbin/whatever", "arg": ["a", "b", "c"]}), "allowed by state"),
        (("guest-exec", {"path": "/usr/sbin/whatever", "env": ["LC_ALL=C"]}), "allowed by state"),
        (("guest-exec", {"path": "/usr/sbin/whatever", "env": ["LD_PRELOAD=/x"]}), "forbidden by default"),
        (("guest-exec", {"path": "/usr/sbin/whatever", "arg": "x"}), "forbidden by default"),
        (("guest-set-user-password", {"username": "app1"}), "allowed by passwords"),
        (("guest-set-user-password", {"username": "root"}), "forbidden by default"),
        (("guest-get-time",), "forbidden by default"),
    ],
)
def test_the_first_rule_that_matches_decides(file: Path, call: tuple[str], decision: str) -> None:
    assert decided(parsed(file, RULES), *call) == decision


TREES = """
default = "deny"

[[rule]]
name = "no keys"
action = "deny"
methods = ["*"]
read = ["/srv/keys/*.pem"]

[[rule]]
name = "srv"
action = "allow"
methods = ["va.*"]
read = ["/srv/**"]
write = ["/srv/in/**"]

[[rule]]
name = "flat"
action = "allow"
methods = ["va.read_tree"]
read = ["/opt/flat/*"]

[[rule]]
name = "as nobody"
action = "allow"
methods = ["va.exec"]
run = [["/usr/sbin/nothing", "**"]]
user = ["nobody"]
"""


@pytest.mark.parametrize(
    ("call", "decision"),
    [
        (("va.stat", "/srv/x"), "allowed by srv"),
        (("va.stat", b"/srv/\xff"), "allowed by srv"),
        (("va.stat", b"/etc/\xff"), "forbidden by default"),
        (("va.list", "/srv/keys"), "allowed by srv"),
        (("va.read_tree", {"path": "/srv/keys/a.pem"}), "forbidden by no keys"),
        (("va.read_tree", {"path": "/srv/keys", "recursive": True}), "forbidden by no keys"),
        (("va.read_tree", {"path": "/", "recursive": True}), "forbidden by no keys"),
        (("va.read_tree", {"path": "/srv/other", "recursive": True}), "allowed by srv"),
        (("va.read_tree", {"path": "/srv/keys/sub", "recursive": True}), "allowed by srv"),
        (("va.read_tree", {"path": "/opt/flat/x"}), "allowed by flat"),
        (("va.read_tree", {"path": "/opt/flat/x", "recursive": True}), "forbidden by default"),
        (("va.write_tree", {"path": "/srv/in/x"}), "allowed by srv"),
        (("va.write_tree", {"path": "/srv/x"}), "forbidden by default"),
        (("va.mkdir", "/srv/in/x"), "allowed by srv"),
        (("va.remove", "/srv/in/x"), "allowed by srv"),
        (("va.remove", "/srv/x"), "forbidden by default"),
        (("va.exec", {"argv": ["/usr/sbin/nothing", b"\xff"], "user": "nobody"}), "allowed by as nobody"),
        (("va.exec", {"argv": ["/usr/sbin/nothing"], "user": "root"}), "forbidden by default"),
        (("va.exec", {"argv": ["/usr/sbin/nothing"]}), "forbidden by default"),
        (
            ("va.exec", {"argv": ["/usr/sbin/nothing"], "user": "nobody", "shell": True}),
            "forbidden by default",
        ),
        (
            ("va.exec", {"argv": ["/usr/sbin/nothing"], "user": "nobody", "env": {"A": "b"}}),
            "forbidden by default",
        ),
        (("va.exec", {"user": "nobody"}), "forbidden by default"),
    ],
)
def test_trees_and_programs_of_the_link_are_judged_as_a_whole(
    file: Path, call: tuple[str], decision: str
) -> None:
    assert decided(parsed(file, TREES), *call) == decision


def test_a_link_that_is_meant_itself_is_judged_by_its_own_place_too(file: Path, tmp_path: Path) -> None:
    root = tmp_path.resolve()
    for name in ("open", "shut"):
        (root / name).mkdir()
    (root / "open/file").touch()
    (root / "shut/back").symlink_to("../open/file")
    (root / "open/out").symlink_to("../shut")
    text = 'default = "deny"\n[[rule]]\nname = "o"\naction = "allow"\nmethods = ["va.*"]\n'
    policy = parsed(file, f'{text}write = ["{root}/open/**"]\nread = ["{root}/open/**"]\n')
    assert decided(policy, "va.remove", f"{root}/open/file") == "allowed by o"
    # It leads into the open, and to remove it would be to write where it is.
    assert decided(policy, "va.remove", f"{root}/shut/back") == "forbidden by default"
    assert (
        decided(policy, "va.write_tree", {"path": f"{root}/open/out", "into": "x"}) == "forbidden by default"
    )
    assert decided(policy, "va.write_tree", {"path": f"{root}/open", "into": "x"}) == "allowed by o"


def test_a_rule_may_hold_for_one_origin_only(file: Path) -> None:
    policy = parsed(file, RULES)
    assert decided(policy, "guest-get-time", origin="qga") == "allowed by info for qga"
    assert policy.forbids("guest-get-time")
    assert not policy.forbids("guest-get-time", "qga")


def test_named_arguments_are_judged_as_positional_ones_are(file: Path) -> None:
    policy = parsed(file, RULES)
    assert policy.decide("guest-file-open", {"path": "/etc/passwd"}, "qga").allowed
    assert not policy.decide("guest-file-open", {"path": "/etc/passwd", "mode": "w"}, "qga").allowed


def test_only_what_no_arguments_make_allowed_counts_as_forbidden(file: Path) -> None:
    policy = parsed(file, RULES)
    forbidden = [m for m in ("va.getfile", "va.getdmesg", "va.shutdown", "va.ping") if policy.forbids(m)]
    assert forbidden == ["va.getdmesg", "va.shutdown"]
    assert not parsed(file, RULES.replace('default = "deny"', 'default = "allow"')).forbids("va.getdmesg")


def test_a_decision_needs_the_file_system_only_if_arguments_count(file: Path) -> None:
    policy = parsed(file, RULES)
    assert policy.depends_on_arguments("va.getfile", "host")
    assert not policy.depends_on_arguments("va.getdmesg", "host")


def test_a_refusal_names_the_rule_and_not_the_argument(file: Path) -> None:
    with pytest.raises(Fault, match="blocked by the guest's policy: rule 'no keys'") as caught:
        parsed(file, RULES).check("va.getfile", ["/etc/ssl/private/key"])
    assert caught.value.code is FaultCode.FORBIDDEN
    assert "private" not in caught.value.message


def test_a_decision_tells_file_and_line(file: Path) -> None:
    decision = parsed(file, RULES).decide("va.getfile", ["/etc/passwd"])
    assert (decision.file, decision.line) == (str(file), 10)
    # A header in a string spoils the count: then no line is better than a wrong one.
    decision = parsed(file, RULES + 'user = ["""\n[[rule]]\n"""]\n').decide("va.getfile", ["/etc/passwd"])
    assert (decision.rule, decision.line) == ("etc", None)


def test_every_method_with_a_path_a_program_or_a_user_can_be_told_by_rules() -> None:
    telling = re.compile(r"^(path|filepath|file|source|target|argv|program|command|username|user)$")
    for method in all_methods():
        # The guest.* methods have one struct, whose members their help names.
        names = [p.name for p in method.parameters] + re.findall(r"[\[ ]([\w-]+): ", method.help)
        if any(telling.match(name) for name in names):
            assert method.name in SUBJECTS, f"{method.name} needs an entry in policy.subject.SUBJECTS"


# --- Files ---------------------------------------------------------------------------------------------

RULE = '[[rule]]\nname = "r"\naction = "allow"\nmethods = ["va.getfile"]\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("default = ", r"is not TOML: Invalid value \(at .*line 1|end of document"),
        ('\n\ndefault = "deny" "x"\n', r"is not TOML: .*line 3, column"),
        ("", r'default must be "allow" or "deny"'),
        ('default = "yes"', r'default must be "allow" or "deny"'),
        ('default = "deny"\nrules = 1', r"no such key: 'rules'"),
        ('default = "deny"\nrule = 1', r"write \[\[rule\]\] above each"),
        ('default = "deny"\n[rule]\nname = "x"', r"write \[\[rule\]\] above each"),
        ("[[rule]]\naction = 'allow'", r"rule 1, line 2: name must be"),
        (RULE + "paths = ['/x']", r"rule 'r' \(line 2\): no such key: 'paths'; the keys are name, action,"),
        (RULE.replace('"allow"', '"permit"'), r"action must be"),
        (RULE.replace('["va.getfile"]', '"va.getfile"'), r"methods must be an array of strings"),
        (RULE.replace('methods = ["va.getfile"]', ""), r"methods is missing"),
        (RULE + RULE, r"several rules are called 'r'"),
        (RULE.replace('"r"', '"default"'), r"the name is taken"),
        (RULE + "read = ['var/log/*']", r"read: 'var/log/\*' must begin with /"),
        (RULE + "read = ['/var/../etc/*']", r"must begin with / and be without"),
        (RULE + "read = []", r"read must be an array of strings, and not empty"),
        (RULE + "run = [['/bin/ls']]", r"va.getfile has nothing to do with programs"),
        (RULE + "address = ['tcp:*']", r"va.getfile has nothing to do with connections"),
        (RULE.replace("allow", "deny") + "address = ['tcp:*']", "address goes with action"),
        (RULE + "address = ['127.0.0.1:22']", "must begin with tcp: or unix:/"),
        (RULE + "user = ['x']", r"va.getfile has nothing to do with users"),
        (RULE + "env = ['x']", r"env goes with run"),
        (RULE + "origin = ['moon']", r"no such origin: 'moon'; there are host, qga"),
        (RULE.replace("va.getfile", "va.ping"), r"va.ping is always answered"),
        (RULE.replace("va.getfile", "guest-exec") + "run = ['/bin/ls']", r"run must be an array of arrays"),
        (RULE.replace("va.getfile", "guest-exec") + "run = [['ls']]", r"run: 'ls' must begin with /"),
    ],
)
def test_a_file_with_a_mistake_is_refused_and_the_place_named(file: Path, text: str, complaint: str) -> None:
    if text.startswith("[[rule]]"):
        text = 'default = "deny"\n' + text
    with pytest.raises(PolicyError, match=complaint) as caught:
        parsed(file, text)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_was_named_must_exist_and_the_default_one_need_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        load_policy(PolicySettings(file=str(file)))
    monkeypatch.setattr("virtagent_guest.policy.file.DEFAULT_FILE", str(file))
    assert not load_policy(PolicySettings()).in_force
    file.write_text('default = "deny"')
    assert load_policy(PolicySettings()).in_force
    # A link to nowhere was meant to be a policy.
    file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(PolicyError):
        load_policy(PolicySettings())


def test_what_is_likely_a_mistake_is_remarked(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/usr")
    text = (
        RULE.replace("va.getfile", "va.getflie") + "[[rule]]\nname = 'l'\naction = 'deny'\nmethods = ['*']\n"
    )
    text += f"read = ['{tmp_path}/link/x*']\n"
    policy = parsed(file, 'default = "deny"\n' + text)
    policy = Policy(frozenset({"va.shutdwon"}), frozenset(), policy.rules, policy.default, policy.file)
    assert remarks(policy, ["va.getfile", "va.shutdown"]) == [
        "allow-rpcs: this agent has no method 'va.shutdwon'",
        "rule 'r': this agent has no method 'va.getflie'",
        f"rule 'l': read: '{tmp_path}/link/x*' matches nothing: {tmp_path}/link is /usr, write that",
    ]


def test_the_examples_of_the_documentation_are_policies_and_do_what_it_says(file: Path) -> None:
    text = (ROOT / "docs" / "policy.md").read_text()
    examples = re.findall(r"(?ms)^```toml\n(.*?)^```$", text)
    assert examples
    for example in examples:
        file.write_text(example)
        rules, default = read_rules(str(file))
        policy = Policy(rules=rules, default=default, file="policy.toml")
        assert remarks(policy, all_methods().names() + list(SUBJECTS)) == []
        # Each is followed by lines that say what it decides: "# METHOD ARGS → decision".
        claims = re.findall(r"(?m)^# (\S+) ?(.*?) → (.*)$", example)
        assert claims
        for method, words, decision in claims:
            assert decided(policy, method, *words.split()) == decision, (method, words)


# --- Connections ---------------------------------------------------------------------------------------


def test_connections_are_judged_by_their_address(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/run")
    policy = parsed(
        file,
        """
default = "allow"
[[rule]]
name = "web"
action = "allow"
methods = ["va.connect", "va.listen"]
address = ["tcp:127.0.0.1:80*", "tcp:LocalHost:?", "tcp:[::1]:443", "unix:/run/*"]
[[rule]]
name = "no other"
action = "deny"
methods = ["va.connect", "va.listen"]
""",
    )
    for method in ("va.connect", "va.listen"):
        for address, rule in (
            ("127.0.0.1:8080", "allowed by web"),
            ("tcp:LOCALHOST:7", "allowed by web"),
            ("tcp:[::1]:443", "allowed by web"),
            ("unix:/run/x", "allowed by web"),
            (f"{tmp_path}/link/x", "allowed by web"),
            ("tcp:127.0.0.1:22", "forbidden by no other"),
            ("tcp:127.0.0.1.example:80", "forbidden by no other"),
            ("tcp:localhost:77", "forbidden by no other"),
            ("unix:/run/x/y", "forbidden by no other"),
            ("unix:/run/../tmp/x", "forbidden by no other"),
            ("nonsense", "forbidden by no other"),
        ):
            assert decided(policy, method, {"address": address, "stream": 1}) == rule, address
    assert decided(policy, "va.connect") == "forbidden by no other"
    assert decided(policy, "va.getfile", "/etc/motd") == "allowed by default"
