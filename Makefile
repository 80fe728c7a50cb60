# headcount's tasks. `make` alone lists them.
#
# Tasks that test and show something first let scripts/setup install what they need and the machine lacks. Those that build, pack and
# install what was built change nothing else on the machine: they name what is missing and the command that brings it. If nothing is
# missing, both take a tenth of a second. SETUP=: skips them.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

SETUP ?= scripts/setup
# What builds only looks.
LOOK  := $(SETUP) --check
CARGO ?= cargo
# On a build machine the lock file must not change; at a desk it may.
LOCKED := $(if $(CI),--locked)

# What tests consist of and what they start is built with the features of all of it, however little of it a task needs: so one build of
# each crate serves `make check`, `make test` and `make campaign`.
TESTED := $(LOCKED) --features headcount/tokio
build-tested = $(CARGO) build $(TESTED) --lib --bins --examples
# And it is what they take, also where something else was built later.
WITH_TESTED := HEADCOUNT_TEST_PROFILE=debug

TARGET  := $(abspath $(or $(CARGO_TARGET_DIR),target))
BUILT   := $(TARGET)/release
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# What `make module` builds for.
NGINX ?= debian
MODULE_NEEDS := $(if $(filter debian,$(NGINX)),module,module-source)
MODULE := $(TARGET)/module/$(if $(filter debian vendored,$(NGINX)),$(NGINX),source)/ngx_headcount_module.so
# Where nginx looks for its modules.
MODULESDIR ?= /usr/lib/nginx/modules

# Where `make install` puts things. You can set each of them.
PREFIX     ?= /usr/local
DESTDIR    ?=
BINDIR     ?= $(PREFIX)/bin
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
# Pure Lua modules, and the folder of Lua modules' shared libraries. Debian's LuaJIT looks in
# /usr/local/lib/lua/5.1, but under /usr only in the folder of the machine's architecture.
MULTIARCH  := $(shell gcc -print-multiarch 2>/dev/null || true)
LUADIR     ?= $(PREFIX)/share/lua/5.1
LUACDIR    ?= $(PREFIX)/lib/$(if $(filter /usr,$(PREFIX)),$(addsuffix /,$(MULTIARCH)))lua/5.1
MANDIR     ?= $(PREFIX)/share/man
DOCDIR     ?= $(PREFIX)/share/doc/headcount
UNITDIR    ?= $(PREFIX)/lib/systemd/system
# Where the shells look by default. Debian's zsh has one folder for packages and one for everything else.
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)

# The demo starts its server as root, so that the workers run as www-data. Nothing else here needs root.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup build programs build-library module demo demo-cluster test test-openresty test-module test-packages test-systemd campaign campaign-cluster check msrv advisories loom models mutants semver fuzz corpus sanitize miri bench bench-cluster fresh lines install install-library install-cluster-library \
        install-program install-module install-rock rock deb deb-module clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make install PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo '  make module NGINX=$(NGINX); make install-module MODULESDIR=$(MODULESDIR)'
	@echo '  (with `make build && make module` before; only the two that install may need sudo)'

setup: ## install everything that the tasks below need (Debian packages, cargo tools)
	scripts/setup all

build: programs ## build the program and the C libraries, optimised
	$(program-pages)

# For .ci/run, which builds them beside tasks that must not find half of those pages.
programs:
	@$(LOOK) program
	$(CARGO) build $(LOCKED) --release -p headcount-ffi -p headcount-cluster-ffi -p headcount-cli

# What a rock contains.
build-library:
	@$(LOOK) build
	$(CARGO) build $(LOCKED) --release -p headcount-ffi

module: ## build the module for nginx; NGINX=debian, vendored (a current one), or a folder with a configured source
	@$(LOOK) $(MODULE_NEEDS)
	CARGO='$(CARGO)' CARGO_TARGET_DIR='$(TARGET)' scripts/build-module '$(NGINX)' $(LOCKED)

demo: ## watch a real nginx start, reload, crash, fail, upgrade and stop, with every report
	@$(SETUP) demo
	@$(CARGO) build $(LOCKED) --release -p headcount-ffi -p headcount-demo
	@rm -rf '$(TARGET)/demo'
	@$(MAKE) --silent install-library PREFIX='$(TARGET)/demo' DESTDIR=
	@$(AS_ROOT) '$(BUILT)/headcount-demo' --library '$(TARGET)/demo' $(DEMO_ARGS)

demo-cluster: ## watch three real hosts on an etcd reload, crash, lose power and be cut off, with what each of them is told
	@$(SETUP) demo-cluster
	@$(CARGO) build $(LOCKED) --release -p headcount-cli -p headcount-demo-cluster
	@$(MAKE) --silent module SETUP=: NGINX=debian
	@$(AS_ROOT) '$(BUILT)/headcount-demo-cluster' $(DEMO_ARGS)

# The module's tests run in Debian's nginx and in a current one.
# Servers under test load the library that was built with the tests; the installation test uses the optimised one.
test: ## test every row of the contract against real servers, then the installation
	@$(SETUP) test
	@$(MAKE) module SETUP=: NGINX=debian
	@$(MAKE) module SETUP=: NGINX=vendored
	$(build-tested)
	CARGO='$(CARGO)' $(WITH_TESTED) scripts/test-all $(TESTED)
	@$(MAKE) test-openresty SETUP=:
	@$(MAKE) --silent build SETUP=:
	scripts/test-install

# The rows with Lua, and those with the module if OPENRESTY_SOURCE names the source that this OpenResty was built from.
test-openresty: ## test the contract with the OpenResty whose nginx OPENRESTY=/path/to/nginx names; `make test OPENRESTY=…` does so too
ifeq ($(OPENRESTY),)
	@echo 'No OpenResty is tested: none was named (OPENRESTY=/path/to/openresty/nginx/sbin/nginx).'
else
	@$(SETUP) program
	$(build-tested)
	$(if $(OPENRESTY_SOURCE),@$(MAKE) module NGINX='$(OPENRESTY_SOURCE)' SETUP=:)
	HEADCOUNT_OPENRESTY='$(OPENRESTY)' $(WITH_TESTED) $(CARGO) test $(TESTED) --no-fail-fast --test seed --test contract -- \
	    $(if $(OPENRESTY_SOURCE),,--skip both:: --skip native::)
endif

test-module: ## run the module through its whole life under valgrind, in Debian's nginx and a current one
	@$(SETUP) module test-module
	@$(MAKE) module SETUP=: NGINX=debian
	@$(MAKE) module SETUP=: NGINX=vendored
	scripts/test-module /usr/sbin/nginx '$(TARGET)/module/debian/ngx_headcount_module.so'
	scripts/test-module '$(TARGET)/module/vendored/nginx' '$(TARGET)/module/vendored/ngx_headcount_module.so'

sanitize: ## look for errors of memory, leaks and data races with the compilers' sanitizers: ONLY=library,cluster,module,core
	@$(SETUP) sanitize
	CARGO='$(CARGO)' CARGO_TARGET_DIR='$(TARGET)' scripts/sanitize $(ONLY)

# Miri is a thousand times slower than the program, and knows neither fork nor most of what we ask the kernel: so what needs neither.
MIRI := $(addsuffix ::,engine error event follower::life follower::node lifecycle::surroundings_tests lifecycle::watch member options \
    registry::layout snapshot sys::grown)
miri: ## look for undefined behaviour in what Miri can run; says so where there is no nightly Rust with it
	@$(SETUP) build
	@if $(CARGO) +nightly miri --version >/dev/null 2>&1; then \
	    CARGO_TARGET_DIR='$(TARGET)/miri' MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +nightly miri test $(LOCKED) -p headcount --lib -- $(MIRI); \
	else \
	    echo 'miri: SKIPPED, there is no nightly Rust with Miri (rustup toolchain install nightly --component miri,rust-src)'; \
	fi

test-packages: ## build the .debs and the rock, and check their contents
	@$(SETUP) test module package
	scripts/test-packages

# Downloads a small Debian each time.
test-systemd: ## install the .debs on a machine of their own whose process 1 is systemd, and do what an operator does there; needs root
	@$(SETUP) module package systemd
	@$(MAKE) deb deb-module SETUP=:
	@$(AS_ROOT) env MIRROR='$(MIRROR)' KEEP='$(KEEP)' scripts/test-systemd '$(TARGET)/debian'

# Faults of these kinds, and how many: see docs/reliability.md. As root, or the truth is less complete.
SEED    ?=
FAULTS  ?=
SECONDS ?= 120
FRONT   ?= lua,module,both,rust
campaign: ## do faults at random to real servers and check what is reported against the kernel; SEED=, FAULTS=, SECONDS=, FRONT=
	@$(SETUP) test
	$(build-tested)
	@$(MAKE) module SETUP=: NGINX=debian
	$(AS_ROOT) env $(WITH_TESTED) '$(TARGET)/debug/headcount-campaign' --seconds '$(SECONDS)' --front '$(FRONT)' --keep '$(TARGET)/campaign' \
	    $(if $(SEED),--seed '$(SEED)') $(if $(FAULTS),--faults '$(FAULTS)') $(CAMPAIGN_ARGS)

# As root: each host and each member of etcd has a network of its own.
campaign-cluster: ## the same with three hosts on an etcd of three members: partitions, slow wires, lost power, restored states; SEED=, FAULTS=, SECONDS=
	@$(SETUP) test
	$(build-tested)
	$(AS_ROOT) env $(WITH_TESTED) '$(TARGET)/debug/headcount-campaign-cluster' --seconds '$(SECONDS)' --keep '$(TARGET)/campaign' \
	    $(if $(SEED),--seed '$(SEED)') $(if $(FAULTS),--faults '$(FAULTS)') $(CAMPAIGN_ARGS)

loom: ## check lock-free reading of the registry under every order of its loads and stores
	@$(SETUP) test
	CARGO_TARGET_DIR='$(TARGET)/loom' RUSTFLAGS='--cfg loom' $(CARGO) test $(LOCKED) --release -p headcount --lib loom

# Optimised, but not as long as what is installed. CASES=… histories; SEED=… replays them; BOUNDS='3 2 2 1 drains stops' says how many
# generations, workers, deaths and respawns the protocol is explored with.
MODELS := CARGO_TARGET_DIR='$(TARGET)/models' CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 RUST_BACKTRACE=0
CASES ?= 10000
models: ## replay CASES random histories of a server, and try every order of the protocol's steps: docs/models.md
	@$(SETUP) test
	$(MODELS) HEADCOUNT_CASES='$(CASES)' $(if $(SEED),HEADCOUNT_SEED='$(SEED)') $(if $(BOUNDS),HEADCOUNT_BOUNDS='$(BOUNDS)') \
	    $(CARGO) test $(LOCKED) --release -p headcount --lib models -- --include-ignored --nocapture --test-threads 1

mutants: ## change each decision of lifecycle, one after the other, and see that a test notices; MUTANTS_ARGS='--shard 0/4' does a quarter
	@$(SETUP) mutants
	CARGO_TARGET_DIR='$(TARGET)' scripts/mutants $(MUTANTS_ARGS)

semver: ## compare the public interface of the library with what was promised (crates/headcount/api-baseline)
	@$(SETUP) semver
	CARGO_TARGET_DIR='$(TARGET)/semver' scripts/semver

fuzz: ## look for bytes that harm whoever reads them, SECONDS=120 for each target or for ONLY=names (docs/fuzzing.md)
	@$(SETUP) fuzz
	CARGO_TARGET_DIR='$(TARGET)' scripts/fuzz '$(SECONDS)' $(ONLY)

# Without the findings, which stay.
corpus: ## make the part of the fuzzer's corpus anew that comes from a real node
	@$(SETUP) build
	rm -f fuzz/corpus/*/real-*
	$(CARGO) run $(LOCKED) --quiet -p fuzz-targets --bin make-corpus -- fuzz/corpus

check: ## run format, lints, docs, licences, shell checks and the quick tests
	@$(SETUP) check
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(TESTED) --all-targets -- -D warnings
	@$(MAKE) module SETUP=: NGINX=debian
	NGINX_SOURCE_DIR=/usr/share/nginx/src NGINX_BUILD_DIR="$$(echo '$(TARGET)'/nginx-debian-*)" \
	    $(CARGO) clippy $(LOCKED) --release -p headcount-nginx -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(TESTED) --no-deps --quiet
	$(CARGO) deny --log-level error check bans licenses sources
	shellcheck -x $$(grep -lE '^#(!.*\bbash| shellcheck shell=bash)' scripts/* .ci/*)
	scripts/test-setup
	$(CARGO) test $(TESTED) --quiet --lib --bins --test header --test corpus

msrv: ## build with the oldest Rust that Cargo.toml promises; says so where it cannot be had (MSRV_CARGO=/path/to/cargo names one)
	@$(SETUP) module
	@CARGO_TARGET_DIR='$(TARGET)' MSRV_CARGO='$(MSRV_CARGO)' scripts/msrv $(LOCKED)

advisories: ## ask RustSec's database about the dependencies; says so where it cannot be had
	@$(SETUP) check
	@scripts/advisories

bench: ## measure; BENCH_ARGS='--bench cluster' is a part; with ORIGINAL=FOLDER and RESTY_LOCK=FOLDER, compare with a checkout of the original Lua library and of lua-resty-lock
	@$(SETUP) bench
	@$(MAKE) module SETUP=: NGINX=debian
	$(CARGO) build $(LOCKED) --release -p headcount-ffi -p headcount-cli
	$(CARGO) build $(LOCKED) --release -p headcount --example prefork
	HEADCOUNT_ORIGINAL='$(ORIGINAL)' HEADCOUNT_RESTY_LOCK='$(RESTY_LOCK)' $(CARGO) bench $(LOCKED) -p headcount-bench $(BENCH_ARGS)

bench-cluster: ## measure what docs/cluster.md says of many hosts; ONLY=death,lost,idle,thousands chooses, HOSTS=10000 says how many
	@$(MAKE) bench BENCH_ARGS='--bench cluster'

# In a folder, from nothing: what somebody meets who follows the README. ONLY='root user server' names machines, STEPS='look demo install test'
# steps; without them it does all, which takes an hour for each release. MIRROR=URL names a mirror other than this machine's own.
fresh: ## the release check: demo, tests and installation on a new minimal RELEASE=bookworm or trixie
	@$(SETUP) fresh
	@$(AS_ROOT) env PATH="$$PATH" SSL_CERT_FILE="$${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" MIRROR='$(MIRROR)' STEPS='$(STEPS)' scripts/fresh '$(RELEASE)' $(ONLY)

lines: ## count the lines of each part, tests aside; AT=COMMIT counts those of a commit
	@scripts/lines $(AT)

# What installs only copies, so root needs neither compiler nor cargo: `make build && sudo make install`.
# install(1) replaces files. It never writes into one that a running server has mapped.
install: install-library install-cluster-library install-program ## install what `make build` built under PREFIX (and DESTDIR): program, manual, libraries, headers, Lua modules
ifeq ($(DESTDIR),)
	@if [ "$$(id -u)" = 0 ] && command -v ldconfig >/dev/null; then ldconfig; fi
endif

# file, what builds it
built = test -e '$(1)' || { echo 'there is no $(1) yet: run `$(2)` first' >&2; exit 1; }

install-library:
	@$(call built,$(BUILT)/libheadcount.so,make build)
	install -d '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)' '$(DESTDIR)$(LUACDIR)'
	install -m 0644 '$(BUILT)/libheadcount.so' '$(DESTDIR)$(LIBDIR)/libheadcount.so'
	install -m 0644 crates/headcount-ffi/include/headcount.h '$(DESTDIR)$(INCLUDEDIR)/headcount.h'
	$(call pkg-config-file,$(PREFIX),$(LIBDIR),$(INCLUDEDIR),$(DESTDIR)$(LIBDIR)/pkgconfig,headcount)
	$(install-lua)
	ln -sfrT '$(DESTDIR)$(LIBDIR)/libheadcount.so' '$(DESTDIR)$(LUACDIR)/libheadcount.so'

# Rust's names have no hyphen.
install-cluster-library:
	@$(call built,$(BUILT)/libheadcount_cluster.so,make build)
	install -d '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)'
	install -m 0644 '$(BUILT)/libheadcount_cluster.so' '$(DESTDIR)$(LIBDIR)/libheadcount-cluster.so'
	install -m 0644 crates/headcount-cluster-ffi/include/headcount_cluster.h '$(DESTDIR)$(INCLUDEDIR)/headcount_cluster.h'
	$(call pkg-config-file,$(PREFIX),$(LIBDIR),$(INCLUDEDIR),$(DESTDIR)$(LIBDIR)/pkgconfig,headcount-cluster)

install-program:
	@$(call built,$(PAGES)/headcount.1,make build)
	install -D -m 0755 '$(BUILT)/headcount' '$(DESTDIR)$(BINDIR)/headcount'
	install -d '$(DESTDIR)$(MANDIR)/man1'
	install -m 0644 '$(PAGES)'/*.1 '$(DESTDIR)$(MANDIR)/man1/'
	install -D -m 0644 '$(PAGES)/headcount.bash' '$(DESTDIR)$(BASHCOMPDIR)/headcount'
	install -D -m 0644 '$(PAGES)/headcount.fish' '$(DESTDIR)$(FISHCOMPDIR)/headcount.fish'
	install -D -m 0644 '$(PAGES)/_headcount' '$(DESTDIR)$(ZSHCOMPDIR)/_headcount'
	install -D -m 0755 packaging/examples/register '$(DESTDIR)$(DOCDIR)/examples/register'
	install -m 0644 packaging/prometheus/*.yml '$(DESTDIR)$(DOCDIR)/examples/'
	install -m 0644 packaging/grafana/headcount.json '$(DESTDIR)$(DOCDIR)/examples/grafana.json'
	install -d '$(DESTDIR)$(UNITDIR)'
	install -m 0644 packaging/examples/agent.toml '$(DESTDIR)$(DOCDIR)/examples/agent.toml'
	$(call unit-file,$(BINDIR),$(DESTDIR)$(UNITDIR),headcount-run@)
	$(call unit-file,$(BINDIR),$(DESTDIR)$(UNITDIR),headcount-agent)

# Manual pages and completions. The program writes them itself, so they always agree with it.
PAGES := $(BUILT)/headcount-pages
define program-pages
rm -rf '$(PAGES)' && mkdir -p '$(PAGES)'
'$(BUILT)/headcount' man --folder '$(PAGES)'
'$(BUILT)/headcount' completions bash > '$(PAGES)/headcount.bash'
'$(BUILT)/headcount' completions fish > '$(PAGES)/headcount.fish'
'$(BUILT)/headcount' completions zsh > '$(PAGES)/_headcount'
endef

install-module: ## install what `make module` built into MODULESDIR (and DESTDIR), where load_module finds it
	@$(call built,$(MODULE),make module$(if $(filter command line,$(origin NGINX)), NGINX=$(NGINX)))
	install -d '$(DESTDIR)$(MODULESDIR)'
	install -m 0644 '$(MODULE)' '$(DESTDIR)$(MODULESDIR)/ngx_headcount_module.so'
	@echo 'Now put this at the top of nginx.conf and restart nginx (a reload does not load a newer module):'
	@echo '    load_module modules/ngx_headcount_module.so;'
	@echo '    headcount on;'

# What LuaRocks calls. It has a folder for modules and one for their libraries, but none for a C library.
install-rock:
	install -d '$(LUACDIR)'
	install -m 0644 '$(BUILT)/libheadcount.so' '$(LUACDIR)/libheadcount.so'
	$(install-lua)

# prefix, libdir, includedir, folder, library
define pkg-config-file
sed -e 's|@PREFIX@|$(1)|; s|@LIBDIR@|$(2)|; s|@INCLUDEDIR@|$(3)|; s|@VERSION@|$(VERSION)|' 'packaging/$(5).pc.in' > '$(4)/$(5).pc'
chmod 0644 '$(4)/$(5).pc'
endef

# bindir, folder, unit
define unit-file
sed -e 's|@BINDIR@|$(1)|' packaging/systemd/$(3).service.in > '$(2)/$(3).service'
chmod 0644 '$(2)/$(3).service'
endef

define install-lua
find lua -name '*.lua' -printf '%P\0' | xargs -0 -I{} install -D -m 0644 'lua/{}' '$(DESTDIR)$(LUADIR)/{}'
endef

deb: ## build the Debian packages (libheadcount, libheadcount-cluster, headcount) into target/debian
	@$(LOOK) package
	@mkdir -p '$(BUILT)'
	$(call pkg-config-file,/usr,/usr/lib/$(MULTIARCH),/usr/include,$(BUILT),headcount)
	$(call pkg-config-file,/usr,/usr/lib/$(MULTIARCH),/usr/include,$(BUILT),headcount-cluster)
	$(call unit-file,/usr/bin,$(BUILT),headcount-run@)
	$(call unit-file,/usr/bin,$(BUILT),headcount-agent)
	@$(MAKE) programs SETUP=:
	$(CARGO) deb $(LOCKED) -p headcount-ffi --no-build --multiarch=same
	$(CARGO) deb $(LOCKED) -p headcount-cluster-ffi --no-build --multiarch=same
	$(program-pages)
	gzip -9n '$(PAGES)'/*.1
	$(CARGO) deb $(LOCKED) -p headcount-cli --no-build
	gunzip '$(PAGES)'/*.1.gz

deb-module: module ## build the Debian package of the module for one nginx
	@$(LOOK) package
	CARGO_TARGET_DIR='$(TARGET)' scripts/deb-module '$(dir $(MODULE))' '$(VERSION)'

rock: ## build the LuaRocks package into target/rock
	@$(LOOK) package
	rm -rf '$(TARGET)/rock' && mkdir -p '$(TARGET)/rock'
	luarocks --lua-version 5.1 --tree '$(TARGET)/rock/tree' make headcount-$(VERSION)-1.rockspec
	cd '$(TARGET)/rock' && luarocks --lua-version 5.1 --tree tree pack headcount $(VERSION)-1 && rm -rf tree

clean: ## remove everything that was built
	$(CARGO) clean
