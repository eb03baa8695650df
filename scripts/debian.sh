# Sourced by the scripts that make file systems out of Debian packages; part of the key of all that they make.

# debian_sources SUITE: the sources of another Debian release, from the mirrors that this machine's own apt uses.
debian_sources() {
  local suite=$1 targets main security
  targets=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(CREATED_BY)')
  main=$(awk '$3 == "Packages" && $2 !~ /-/ && $1 ~ /debian\/?$/ { print $1; exit }' <<<"$targets")
  security=$(awk '$3 == "Packages" && $2 ~ /-security$/ { print $1; exit }' <<<"$targets")
  [ -n "$main" ] || die "apt knows no Debian mirror: run apt-get update (make setup)"
  echo "deb $main $suite main"
  [ -z "$security" ] || echo "deb $security $suite-security main"
}

# debian_tree SUITE PACKAGES FOLDER [mmdebstrap options]: a minimal Debian with these packages, without documents and translations.
debian_tree() {
  local suite=$1 packages=$2 folder=$3; shift 3
  debian_sources "$suite" | mmdebstrap --variant=minbase --include="$packages" \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/lintian/*' "$@" "$suite" "$folder" -
}

# packages FILE: the names in a package list (one a line, # comments), joined by commas.
packages() { sed -e 's/#.*//' -e '/^\s*$/d' "$1" | tr -s ' \n' ',' | sed 's/,$//'; }
