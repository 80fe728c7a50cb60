# shellcheck shell=bash
# For the scripts that make a machine of their own: a folder with a minimal Debian, from where this machine has its packages.

# The repositories of this machine, for another release: "URL suite". All parts of Debian, without others' repositories.
# MIRROR=URL names another one.
repositories() { # release
    if [[ -n ${MIRROR:-} ]]; then
        printf '%s %s\n' "$MIRROR" "$1"
        return
    fi
    local codename
    command -v apt-get >/dev/null || {
        echo "there is no apt-get here to ask for a mirror: name one with MIRROR=URL" >&2
        return 1
    }
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # apt-get fills these in
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(LABEL)' 'Identifier: Packages' |
        sed -n "s|^\([^ ]*\) $codename\([^ ]*\) Debian.*|\1 $1\2|p" | sort -u
}

new_machine() { # folder release packages,with,commas: leaves FOLDER.repositories and FOLDER.log beside it
    local machine=$1 release=$2 mirror
    repositories "$release" >"$machine.repositories" || return 1
    mirror=$(sed -n "s|^\([^ ]*\) $release\$|\1|p" "$machine.repositories" | head -n 1)
    [[ -n $mirror ]] || {
        echo "apt's configuration here names no mirror of Debian: name one with MIRROR=URL" >&2
        return 1
    }
    debootstrap --variant=minbase --include="$3" "$release" "$machine" "$mirror" >"$machine.log" 2>&1 || {
        tail -n 20 "$machine.log" >&2
        echo "debootstrap failed" >&2
        return 1
    }
}
