"""The configuration file and the command line of va-guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtagent_guest import cli
from virtagent_guest.config import DEFAULT_PORT, Channel, Config, ConfigError, choose_channel, dump, load
from virtagent_guest.forward.settings import ForwardSettings
from virtagent_protocol.address import TcpAddress, UnixAddress

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "guest.toml"


def test_the_sample_configuration_says_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIRTAGENT_SOCKET")
    assert load(str(ROOT / "contrib" / "guest.toml")) == Config()


def test_a_file_that_was_not_named_need_not_exist(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtagent_guest.config.DEFAULT_FILE", str(file))
    assert load(None) == Config()
    with pytest.raises(ConfigError, match="does not exist"):
        load(str(file))


def test_all_keys_are_read(file: Path) -> None:
    file.write_text('[channel]\nkind="isa-serial"\npath="/dev/ttyS1"\nspeed=9600\n[log]\nverbose=true\n')
    assert load(str(file)) == Config(Channel("isa-serial", "/dev/ttyS1", 9600), verbose=True)


def test_forwards_are_read_and_dumped_as_they_were(file: Path) -> None:
    file.write_text(
        '[[forward]]\nlisten="127.0.0.1:8080"\nservice="web"\n[[forward]]\nlisten="/run/db"\nservice="db"\n'
    )
    config = load(str(file))
    assert config.forwards == (
        ForwardSettings(TcpAddress("127.0.0.1", 8080), "web"),
        ForwardSettings(UnixAddress("/run/db"), "db"),
    )
    file.write_text(dump(config))
    assert load(str(file)) == config


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[chanel]\n", r"no such table or key: 'chanel'; the tables are channel, log"),
        ("verbose=true\n", r"no such table or key: 'verbose'"),
        ('[channel]\npfad="x"\n', r"no such key in \[channel\]: 'pfad'; the keys are kind, path, speed"),
        ("channel=1\n", r"'channel' must be a table"),
        ("[channel]\nspeed='x'\n", r"'speed' in \[channel\] must be a number"),
        ("[channel]\nspeed=true\n", r"'speed' in \[channel\] must be a number"),
        ("[channel]\nspeed=1\n", r"no such speed: 1; the speeds are 1200, "),
        ("[channel]\nkind='tcp'\n", r"\[channel\]: no such channel: 'tcp'; the channels are virtio-serial, "),
        ("[channel]\nkind='isa-serial'\n", r"channel isa-serial needs a path"),
        ("[log]\nverbose=1\n", r"'verbose' in \[log\] must be a truth value"),
        ("[", r"is not TOML"),
        ("forward=1\n", r"'forward' must be an array of tables: write \[\[forward\]\]"),
        ("[forward]\n", r"'forward' must be an array of tables"),
        ("[[forward]]\nlisten='/x'\n", r"\[\[forward\]\] has two keys, both strings: 'listen' and 'service'"),
        ("[[forward]]\nlisten=1\nservice='web'\n", r"has two keys, both strings"),
        ("[[forward]]\nlisten='80'\nservice='web'\n", r"'listen' in \[\[forward\]\]: '80' is not an address"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(file: Path, text: str, complaint: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(str(file))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        (None, None, Channel()),
        (None, "/dev/x", Channel("virtio-serial", "/dev/x")),
        ("virtio-serial", None, Channel("virtio-serial", DEFAULT_PORT)),
        ("unix-listen", "/run/x", Channel("unix-listen", "/run/x")),
        # The form of virtagent v5.
        ("virtio-serial:/dev/virtio-ports/x:-", None, Channel("virtio-serial", "/dev/virtio-ports/x")),
        ("isa-serial:/dev/by-path/pci-0:0:1", None, Channel("isa-serial", "/dev/by-path/pci-0:0:1")),
        ("unix-connect:/a", "/b", Channel("unix-connect", "/b")),
    ],
)
def test_the_command_line_chooses_a_channel(kind: str | None, path: str | None, expected: Channel) -> None:
    assert choose_channel(Channel(), kind, path) == expected


def test_a_path_does_not_stay_when_the_kind_changes() -> None:
    serial = Channel("isa-serial", "/dev/ttyS1")
    assert choose_channel(serial, "virtio-serial", None).path == DEFAULT_PORT
    assert choose_channel(serial, "isa-serial", None).path == "/dev/ttyS1"
    with pytest.raises(ConfigError, match="needs a path"):
        choose_channel(serial, "unix-listen", None)


def test_a_mistake_on_the_command_line_is_told_with_exit_status_2(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    file.touch()
    for arguments in (["--chan", "x"], ["-c", "tcp"], ["--config", str(file / "none")]):
        with pytest.raises(SystemExit) as exit:
            cli.main(["--config", str(file), *arguments])
        assert exit.value.code == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(("va-guest: ", "usage: va-guest"))
        assert not captured.out
