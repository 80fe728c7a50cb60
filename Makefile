# headcount's tasks. `make` alone lists them.
#
# Each task first lets scripts/setup bring what it needs and the machine lacks; on a machine that has it all,
# that costs a tenth of a second. SETUP=: leaves it out.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

SETUP ?= scripts/setup
CARGO ?= cargo
# On a build machine the lock file is the law; at a desk it may move.
LOCKED := $(if $(CI),--locked)

TARGET  := $(abspath $(or $(CARGO_TARGET_DIR),target))
RELEASE := $(TARGET)/release
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# What `make module` builds for.
NGINX ?= debian
MODULE := $(TARGET)/module/$(if $(filter debian vendored,$(NGINX)),$(NGINX),source)/ngx_headcount_module.so
# Where nginx looks for its modules.
MODULESDIR ?= /usr/lib/nginx/modules

# Where `make install` puts things; each can be given.
PREFIX     ?= /usr/local
DESTDIR    ?=
BINDIR     ?= $(PREFIX)/bin
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
# Pure Lua modules, and where a Lua module's shared library is looked for. Debian's LuaJIT looks into
# /usr/local/lib/lua/5.1, but under /usr only into the folder of the machine's architecture.
MULTIARCH  := $(shell gcc -print-multiarch 2>/dev/null || true)
LUADIR     ?= $(PREFIX)/share/lua/5.1
LUACDIR    ?= $(PREFIX)/lib/$(if $(filter /usr,$(PREFIX)),$(addsuffix /,$(MULTIARCH)))lua/5.1
MANDIR     ?= $(PREFIX)/share/man
# Where the shells look by themselves. Debian's zsh has one folder for packages and one for everybody else.
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)

# The demo starts its server as root, so that the workers drop to www-data; nothing else here needs root.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup build build-library module demo test test-module test-packages check loom bench install install-files install-library \
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

# All that a rock is made of.
build-library:
	@$(SETUP) build
	$(CARGO) build $(LOCKED) --release -p headcount-ffi

module: ## build the module for nginx; NGINX=debian, vendored (a current one), or a folder with a configured source
	@$(SETUP) module
	CARGO='$(CARGO)' CARGO_TARGET_DIR='$(TARGET)' scripts/build-module '$(NGINX)' $(LOCKED)

demo: ## watch a real nginx start, reload, crash, fail, upgrade and stop, and what is reported of it
	@$(SETUP) demo
	@$(CARGO) build $(LOCKED) --release -p headcount-ffi -p headcount-demo
	@rm -rf '$(TARGET)/demo'
	@$(MAKE) --silent install-library PREFIX='$(TARGET)/demo' DESTDIR=
	@$(AS_ROOT) '$(RELEASE)/headcount-demo' --library '$(TARGET)/demo' $(DEMO_ARGS)

# What the tests of the module load: Debian's nginx, and a current one.
# The servers under test load the library from beside the tests; the installation test takes the optimised one.
test: ## prove every row of the contract against real servers, then the installation
	@$(SETUP) test
	$(CARGO) build $(LOCKED) -p headcount-ffi
	@$(MAKE) module SETUP=: NGINX=debian
	@$(MAKE) module SETUP=: NGINX=vendored
	$(CARGO) test $(LOCKED) --features headcount/tokio --no-fail-fast
	@$(MAKE) --silent build SETUP=:
	scripts/test-install

test-module: ## a full life of the module under valgrind, in Debian's nginx and in a current one
	@$(SETUP) module test-module
	@$(MAKE) module SETUP=: NGINX=debian
	@$(MAKE) module SETUP=: NGINX=vendored
	scripts/test-module /usr/sbin/nginx '$(TARGET)/module/debian/ngx_headcount_module.so'
	scripts/test-module '$(TARGET)/module/vendored/nginx' '$(TARGET)/module/vendored/ngx_headcount_module.so'

test-packages: ## build the .debs and the rock, and look into them
	@$(SETUP) test module package
	scripts/test-packages

loom: ## check the lock-free reading of the registry under every order of its loads and stores
	@$(SETUP) test
	CARGO_TARGET_DIR='$(TARGET)/loom' RUSTFLAGS='--cfg loom' $(CARGO) test $(LOCKED) --release -p headcount --lib loom

check: ## what a reviewer would only nag about: format, lints, docs, licences, shell, and the quick tests
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

bench: ## measure; ORIGINAL=folder names a checkout of the original Lua library to compare with
	@$(SETUP) bench
	@$(MAKE) module SETUP=: NGINX=debian
	$(CARGO) build $(LOCKED) --release -p headcount-ffi
	HEADCOUNT_ORIGINAL='$(ORIGINAL)' $(CARGO) bench $(LOCKED) -p headcount-bench $(BENCH_ARGS)

install: build install-files ## put program, manual, library, header and Lua modules under PREFIX (and DESTDIR)
ifeq ($(DESTDIR),)
	@if [ "$$(id -u)" = 0 ] && command -v ldconfig >/dev/null; then ldconfig; fi
endif

# Copies only, so that root needs no compiler for it: `make build && sudo make install-files`.
# install(1) puts a new file in the place of the old one, and never writes into one that a running server has mapped.
install-files: install-library install-program

install-library:
	@test -e '$(RELEASE)/libheadcount.so' || { echo 'no $(RELEASE)/libheadcount.so yet: run `make build` first' >&2; exit 1; }
	install -d '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)' '$(DESTDIR)$(LUACDIR)'
	install -m 0644 '$(RELEASE)/libheadcount.so' '$(DESTDIR)$(LIBDIR)/libheadcount.so'
	install -m 0644 crates/headcount-ffi/include/headcount.h '$(DESTDIR)$(INCLUDEDIR)/headcount.h'
	$(call pkg-config-file,$(PREFIX),$(LIBDIR),$(INCLUDEDIR),$(DESTDIR)$(LIBDIR)/pkgconfig/headcount.pc)
	$(install-lua)
	ln -sfrT '$(DESTDIR)$(LIBDIR)/libheadcount.so' '$(DESTDIR)$(LUACDIR)/libheadcount.so'

install-program:
	@test -e '$(PAGES)/headcount.1' || { echo 'no $(PAGES)/headcount.1 yet: run `make build` first' >&2; exit 1; }
	install -D -m 0755 '$(RELEASE)/headcount' '$(DESTDIR)$(BINDIR)/headcount'
	install -d '$(DESTDIR)$(MANDIR)/man1'
	install -m 0644 '$(PAGES)'/*.1 '$(DESTDIR)$(MANDIR)/man1/'
	install -D -m 0644 '$(PAGES)/headcount.bash' '$(DESTDIR)$(BASHCOMPDIR)/headcount'
	install -D -m 0644 '$(PAGES)/headcount.fish' '$(DESTDIR)$(FISHCOMPDIR)/headcount.fish'
	install -D -m 0644 '$(PAGES)/_headcount' '$(DESTDIR)$(ZSHCOMPDIR)/_headcount'

# Manual pages and completions, which the program writes itself, so that they never say anything else than it does.
PAGES := $(RELEASE)/headcount-pages
define program-pages
rm -rf '$(PAGES)' && mkdir -p '$(PAGES)'
'$(RELEASE)/headcount' man --folder '$(PAGES)'
'$(RELEASE)/headcount' completions bash > '$(PAGES)/headcount.bash'
'$(RELEASE)/headcount' completions fish > '$(PAGES)/headcount.fish'
'$(RELEASE)/headcount' completions zsh > '$(PAGES)/_headcount'
endef

install-module: module ## put the nginx module into MODULESDIR (and DESTDIR), where load_module finds it
	install -d '$(DESTDIR)$(MODULESDIR)'
	install -m 0644 '$(MODULE)' '$(DESTDIR)$(MODULESDIR)/ngx_headcount_module.so'
	@echo 'now put this at the top of nginx.conf, then restart nginx (a reload does not load a newer module):'
	@echo '    load_module modules/ngx_headcount_module.so;'
	@echo '    headcount on;'

# What LuaRocks calls: it has a folder for modules and one for their libraries, and none for a C library.
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

deb-module: module ## build the Debian package of the module, named after the nginx that it fits
	@$(SETUP) package
	CARGO_TARGET_DIR='$(TARGET)' scripts/deb-module '$(dir $(MODULE))' '$(VERSION)'

rock: ## build the LuaRocks package into target/rock
	@$(SETUP) package
	rm -rf '$(TARGET)/rock' && mkdir -p '$(TARGET)/rock'
	luarocks --lua-version 5.1 --tree '$(TARGET)/rock/tree' make headcount-$(VERSION)-1.rockspec
	cd '$(TARGET)/rock' && luarocks --lua-version 5.1 --tree tree pack headcount $(VERSION)-1 && rm -rf tree

clean: ## remove everything that was built
	$(CARGO) clean
