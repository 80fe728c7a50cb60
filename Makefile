# headcount's tasks. `make` alone lists them.
#
# Each task first lets scripts/setup install what it needs and the machine lacks. If nothing is missing, that takes a
# tenth of a second. SETUP=: skips it.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

SETUP ?= scripts/setup
CARGO ?= cargo
# On a build machine the lock file must not change; at a desk it may.
LOCKED := $(if $(CI),--locked)

TARGET  := $(abspath $(or $(CARGO_TARGET_DIR),target))
RELEASE := $(TARGET)/release
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# What `make module` builds for.
NGINX ?= debian
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
# Where the shells look by default. Debian's zsh has one folder for packages and one for everything else.
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)

# The demo starts its server as root, so that the workers run as www-data. Nothing else here needs root.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup build build-library module demo test test-module test-packages check loom bench lines install install-files install-library \
        install-program install-module install-rock rock deb deb-module clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make install PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo '  make module NGINX=$(NGINX); make install-module MODULESDIR=$(MODULESDIR)'

setup: ## install everything that the tasks below need (Debian packages, cargo tools)
	scripts/setup all

build: ## build the program, libheadcount.so and headcount.h, optimised
	@$(SETUP) build
	$(CARGO) build $(LOCKED) --release -p headcount-ffi -p headcount-cli
	$(program-pages)

# What a rock contains.
build-library:
	@$(SETUP) build
	$(CARGO) build $(LOCKED) --release -p headcount-ffi

module: ## build the module for nginx; NGINX=debian, vendored (a current one), or a folder with a configured source
	@$(SETUP) module
	CARGO='$(CARGO)' CARGO_TARGET_DIR='$(TARGET)' scripts/build-module '$(NGINX)' $(LOCKED)

demo: ## watch a real nginx start, reload, crash, fail, upgrade and stop, with every report
	@$(SETUP) demo
	@$(CARGO) build $(LOCKED) --release -p headcount-ffi -p headcount-demo
	@rm -rf '$(TARGET)/demo'
	@$(MAKE) --silent install-library PREFIX='$(TARGET)/demo' DESTDIR=
	@$(AS_ROOT) '$(RELEASE)/headcount-demo' --library '$(TARGET)/demo' $(DEMO_ARGS)

# The module's tests run in Debian's nginx and in a current one.
# Servers under test load the library that was built with the tests; the installation test uses the optimised one.
test: ## test every row of the contract against real servers, then the installation
	@$(SETUP) test
	$(CARGO) build $(LOCKED) -p headcount-ffi -p headcount-cli -p testkit
	@$(MAKE) module SETUP=: NGINX=debian
	@$(MAKE) module SETUP=: NGINX=vendored
	$(CARGO) test $(LOCKED) --features headcount/tokio --no-fail-fast
	@$(MAKE) --silent build SETUP=:
	scripts/test-install

test-module: ## run the module through its whole life under valgrind, in Debian's nginx and a current one
	@$(SETUP) module test-module
	@$(MAKE) module SETUP=: NGINX=debian
	@$(MAKE) module SETUP=: NGINX=vendored
	scripts/test-module /usr/sbin/nginx '$(TARGET)/module/debian/ngx_headcount_module.so'
	scripts/test-module '$(TARGET)/module/vendored/nginx' '$(TARGET)/module/vendored/ngx_headcount_module.so'

test-packages: ## build the .debs and the rock, and check their contents
	@$(SETUP) test module package
	scripts/test-packages

loom: ## check lock-free reading of the registry under every order of its loads and stores
	@$(SETUP) test
	CARGO_TARGET_DIR='$(TARGET)/loom' RUSTFLAGS='--cfg loom' $(CARGO) test $(LOCKED) --release -p headcount --lib loom

check: ## run format, lints, docs, licences, shell checks and the quick tests
	@$(SETUP) check
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(LOCKED) --features headcount/tokio --all-targets -- -D warnings
	@$(MAKE) module SETUP=: NGINX=debian
	NGINX_SOURCE_DIR=/usr/share/nginx/src NGINX_BUILD_DIR="$$(echo '$(TARGET)'/nginx-debian-*)" \
	    $(CARGO) clippy $(LOCKED) --release -p headcount-nginx -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(LOCKED) --features headcount/tokio --no-deps --quiet
	$(CARGO) deny --log-level error check bans licenses sources
	shellcheck -x $$(grep -lE '^#(!.*\bbash| shellcheck shell=bash)' scripts/* .ci/*)
	$(CARGO) test $(LOCKED) --quiet -p headcount --lib
	$(CARGO) test $(LOCKED) --quiet -p headcount-ffi --lib --test header

bench: ## measure; with ORIGINAL=FOLDER, compare with a checkout of the original Lua library
	@$(SETUP) bench
	@$(MAKE) module SETUP=: NGINX=debian
	$(CARGO) build $(LOCKED) --release -p headcount-ffi
	HEADCOUNT_ORIGINAL='$(ORIGINAL)' $(CARGO) bench $(LOCKED) -p headcount-bench $(BENCH_ARGS)

lines: ## count the lines of each part, tests aside; AT=COMMIT counts those of a commit
	@scripts/lines $(AT)

install: build install-files ## install program, manual, library, header and Lua modules under PREFIX (and DESTDIR)
ifeq ($(DESTDIR),)
	@if [ "$$(id -u)" = 0 ] && command -v ldconfig >/dev/null; then ldconfig; fi
endif

# Only copies, so root needs no compiler: `make build && sudo make install-files`.
# install(1) replaces files. It never writes into one that a running server has mapped.
install-files: install-library install-program

install-library:
	@test -e '$(RELEASE)/libheadcount.so' || { echo 'there is no $(RELEASE)/libheadcount.so yet: run `make build` first' >&2; exit 1; }
	install -d '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)' '$(DESTDIR)$(LUACDIR)'
	install -m 0644 '$(RELEASE)/libheadcount.so' '$(DESTDIR)$(LIBDIR)/libheadcount.so'
	install -m 0644 crates/headcount-ffi/include/headcount.h '$(DESTDIR)$(INCLUDEDIR)/headcount.h'
	$(call pkg-config-file,$(PREFIX),$(LIBDIR),$(INCLUDEDIR),$(DESTDIR)$(LIBDIR)/pkgconfig/headcount.pc)
	$(install-lua)
	ln -sfrT '$(DESTDIR)$(LIBDIR)/libheadcount.so' '$(DESTDIR)$(LUACDIR)/libheadcount.so'

install-program:
	@test -e '$(PAGES)/headcount.1' || { echo 'there is no $(PAGES)/headcount.1 yet: run `make build` first' >&2; exit 1; }
	install -D -m 0755 '$(RELEASE)/headcount' '$(DESTDIR)$(BINDIR)/headcount'
	install -d '$(DESTDIR)$(MANDIR)/man1'
	install -m 0644 '$(PAGES)'/*.1 '$(DESTDIR)$(MANDIR)/man1/'
	install -D -m 0644 '$(PAGES)/headcount.bash' '$(DESTDIR)$(BASHCOMPDIR)/headcount'
	install -D -m 0644 '$(PAGES)/headcount.fish' '$(DESTDIR)$(FISHCOMPDIR)/headcount.fish'
	install -D -m 0644 '$(PAGES)/_headcount' '$(DESTDIR)$(ZSHCOMPDIR)/_headcount'

# Manual pages and completions. The program writes them itself, so they always agree with it.
PAGES := $(RELEASE)/headcount-pages
define program-pages
rm -rf '$(PAGES)' && mkdir -p '$(PAGES)'
'$(RELEASE)/headcount' man --folder '$(PAGES)'
'$(RELEASE)/headcount' completions bash > '$(PAGES)/headcount.bash'
'$(RELEASE)/headcount' completions fish > '$(PAGES)/headcount.fish'
'$(RELEASE)/headcount' completions zsh > '$(PAGES)/_headcount'
endef

install-module: module ## install the nginx module into MODULESDIR (and DESTDIR), where load_module finds it
	install -d '$(DESTDIR)$(MODULESDIR)'
	install -m 0644 '$(MODULE)' '$(DESTDIR)$(MODULESDIR)/ngx_headcount_module.so'
	@echo 'Now put this at the top of nginx.conf and restart nginx (a reload does not load a newer module):'
	@echo '    load_module modules/ngx_headcount_module.so;'
	@echo '    headcount on;'

# What LuaRocks calls. It has a folder for modules and one for their libraries, but none for a C library.
install-rock:
	install -d '$(LUACDIR)'
	install -m 0644 '$(RELEASE)/libheadcount.so' '$(LUACDIR)/libheadcount.so'
	$(install-lua)

# prefix, libdir, includedir, file
define pkg-config-file
sed -e 's|@PREFIX@|$(1)|; s|@LIBDIR@|$(2)|; s|@INCLUDEDIR@|$(3)|; s|@VERSION@|$(VERSION)|' packaging/headcount.pc.in > '$(4)'
chmod 0644 '$(4)'
endef

define install-lua
find lua -name '*.lua' -printf '%P\0' | xargs -0 -I{} install -D -m 0644 'lua/{}' '$(DESTDIR)$(LUADIR)/{}'
endef

deb: ## build the Debian packages (libheadcount, headcount) into target/debian
	@$(SETUP) package
	@mkdir -p '$(RELEASE)'
	$(call pkg-config-file,/usr,/usr/lib/$(MULTIARCH),/usr/include,$(RELEASE)/headcount.pc)
	$(CARGO) build $(LOCKED) --release -p headcount-ffi -p headcount-cli
	$(CARGO) deb $(LOCKED) -p headcount-ffi --no-build --multiarch=same
	$(program-pages)
	gzip -9n '$(PAGES)'/*.1
	$(CARGO) deb $(LOCKED) -p headcount-cli --no-build
	gunzip '$(PAGES)'/*.1.gz

deb-module: module ## build the Debian package of the module for one nginx
	@$(SETUP) package
	CARGO_TARGET_DIR='$(TARGET)' scripts/deb-module '$(dir $(MODULE))' '$(VERSION)'

rock: ## build the LuaRocks package into target/rock
	@$(SETUP) package
	rm -rf '$(TARGET)/rock' && mkdir -p '$(TARGET)/rock'
	luarocks --lua-version 5.1 --tree '$(TARGET)/rock/tree' make headcount-$(VERSION)-1.rockspec
	cd '$(TARGET)/rock' && luarocks --lua-version 5.1 --tree tree pack headcount $(VERSION)-1 && rm -rf tree

clean: ## remove everything that was built
	$(CARGO) clean
