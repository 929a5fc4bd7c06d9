# virtagent: `make help` lists what there is. Nothing has to be installed before, see scripts/setup.sh.

PYTHON ?= python3
DESTDIR ?=
export PYTHONUNBUFFERED = 1

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv/bin
BUNDLE := build/va-guest.pyz
CONTRIB := $(wildcard contrib/systemd/va-guest*) contrib/systemd/90-virtagent.rules contrib/guest.toml
# Named after its recipe: it is rebuilt when that changes, whatever git does to time stamps.
ROOTFS := build/guest/rootfs-$(shell sha256sum scripts/build_rootfs.sh | cut -c 1-12).tar
IMAGE := build/guest/disk.img

.DELETE_ON_ERROR:
.PHONY: help demo test test-unit test-integration test-guest test-faults qga-table soak bench fuzz check setup setup-tests guest-bundle guest-image install-guest install-guest-qga clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' Makefile | while read -r target text; do printf '  %-18s %s\n' $$target "$$text"; done

demo: setup guest-image ## boot a Debian guest, attach to it, call it, shut it down
	@$(VENV)/python scripts/demo.py

test: setup-tests guest-image ## run all tests
	@scripts/test.sh

test-unit: setup ## run the tests without I/O
	@$(VENV)/pytest tests/unit

test-integration: setup-tests ## run the tests with processes and sockets
	@$(VENV)/pytest tests/integration

test-guest: setup-tests guest-image ## run the tests on a real guest
	@$(VENV)/pytest tests/guest

test-faults: setup guest-image ## do every fault many times (FAULT_REPEAT, 100), for the table of docs/reliability.md
	@FAULT_REPEAT=$${FAULT_REPEAT:-100} $(VENV)/pytest tests/faults

qga-table: setup-tests guest-image ## compare va-guest with the real qemu-ga in a guest, then write docs/qga.md
	@PYTHONPATH=protocol:. $(VENV)/python -m tests.guest.qga_compare docs/qga.md

soak: setup guest-image ## random faults for SOAK_SECONDS (1200) on processes and a guest, then write docs/reliability.md
	@PYTHONPATH=protocol:. $(VENV)/python -m tests.faults.soak
	@PYTHONPATH=protocol:. $(VENV)/python -m tests.faults.report >build/reliability.md
	@mv build/reliability.md docs/reliability.md

bench: setup-tests guest-image ## measure qemu-ga and va-guest side by side (BENCH="--quick --native-only …"), into build/bench.json
	@PYTHONPATH=protocol:. $(VENV)/python -m benchmarks $(BENCH)

fuzz: setup ## fuzz each parser for FUZZ_SECONDS (60)
	@$(VENV)/python -c 'import atheris' 2>/dev/null || { echo "fuzz: installing atheris"; $(VENV)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'; }
	@PYTHONPATH=protocol:. $(VENV)/python -m tests.fuzz.run

check: setup ## lint, format check and type check
	@echo "check: ruff, mypy"
	@$(VENV)/ruff check
	@$(VENV)/ruff format --check
	@$(VENV)/mypy

setup: ## install Debian packages and .venv, if missing
	@scripts/setup.sh $(PYTHON)

setup-tests: setup ## install what the tests need besides: libvirt, and a qemu-ga to compare with
	@scripts/setup_tests.sh

guest-bundle: $(BUNDLE) ## make build/va-guest.pyz, the agent in one file

guest-image: $(IMAGE) ## make build/guest/{vmlinuz,initrd.img,disk.img}

install-guest: ## install agent, unit, udev rule and configuration under DESTDIR
	@test -f $(BUNDLE) || { echo "$(BUNDLE) is missing: run make guest-bundle" >&2; exit 1; }
	install -D -m 0755 $(BUNDLE) $(DESTDIR)/usr/local/bin/va-guest
	install -D -m 0644 contrib/systemd/va-guest.service $(DESTDIR)/etc/systemd/system/va-guest.service
	install -D -m 0644 contrib/systemd/va-guest-freezer.socket $(DESTDIR)/etc/systemd/system/va-guest-freezer.socket
	install -D -m 0644 contrib/systemd/va-guest-freezer.service $(DESTDIR)/etc/systemd/system/va-guest-freezer.service
	install -D -m 0644 contrib/systemd/va-guest-session.service $(DESTDIR)/etc/systemd/user/va-guest-session.service
	install -D -m 0644 contrib/systemd/90-virtagent.rules $(DESTDIR)/etc/udev/rules.d/90-virtagent.rules
	install -d -m 0755 $(DESTDIR)/etc/virtagent/methods.d
	test -e $(DESTDIR)/etc/virtagent/guest.toml || install -D -m 0644 contrib/guest.toml $(DESTDIR)/etc/virtagent/guest.toml

install-guest-qga: ## let the agent take the place of qemu-ga, under DESTDIR (docs/migration-from-qemu-ga.md)
	install -D -m 0644 contrib/systemd/va-guest-qga.conf $(DESTDIR)/etc/systemd/system/va-guest.service.d/qga.conf
	install -D -m 0644 contrib/systemd/99-zz-virtagent-qga.rules $(DESTDIR)/etc/udev/rules.d/99-zz-virtagent-qga.rules

clean: ## remove what was built; .venv stays
	rm -rf build

$(BUNDLE): scripts/build_bundle.py pyproject.toml $(shell find virtagent_guest protocol/virtagent_protocol -name '*.py') | setup
	@echo "guest-bundle: $@"
	@$(VENV)/python scripts/build_bundle.py $@

$(ROOTFS): | setup
	@echo "guest-image: Debian root file system (takes half a minute)"
	@mkdir -p $(@D)
	@rm -f build/guest/rootfs-*.tar
	@$(SUDO) scripts/build_rootfs.sh $@

$(IMAGE): $(ROOTFS) $(BUNDLE) $(CONTRIB) scripts/build_disk.sh | setup
	@echo "guest-image: $@"
	@$(SUDO) scripts/build_disk.sh $(ROOTFS) $(@D)
