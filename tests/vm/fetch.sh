# fetch DIR SERIES: unpacks Debian's newest cloud kernel of a series (such as 6.1) below DIR, unless one is
# there, and prints the name of its directory. Package lists are the script's own: the machine's know
# one release.
dir=$1 series=$2
cd "$dir"
there=$(ls -d "$series".[0-9]*-cloud-amd64 2>/dev/null | sort -V | tail -n 1)
[ -z "$there" ] || { echo "$there"; exit; }
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep /debian$ | head -n 1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p apt/lists/partial apt/archives/partial
for suite in bullseye bookworm bookworm-backports trixie trixie-backports; do
    echo "deb [signed-by=$keys] $mirror $suite main"
done >apt/sources.list
for suite in bullseye bookworm trixie; do
    echo "deb [signed-by=$keys] $mirror-security $suite-security main"
done >>apt/sources.list
: >apt/status
private() {
    tool=$1
    shift
    "$tool" -o Dir::State::lists="$dir/apt/lists" -o Dir::Cache="$dir/apt" -o Dir::State::status="$dir/apt/status" \
        -o Dir::Etc::sourcelist="$dir/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}
[ -n "$(ls apt/lists/*Packages* 2>/dev/null)" ] || private apt-get update -qq
newest=$(private apt-cache search --names-only "^linux-image-$series\.[0-9].*-cloud-amd64\$" |
    sed -n 's/^linux-image-\([^ ]*\) .*/\1/p' | grep -v unsigned | sort -V | tail -n 1)
[ -n "$newest" ] || { echo "no kernel $series on the mirror" >&2; exit 1; }
mkdir -p new
# Newer ones are in several packages.
for part in image binary modules; do
    private apt-cache show "linux-$part-$newest" >/dev/null 2>&1 || continue
    (cd new && private apt-get download -qq "linux-$part-$newest")
done
mkdir "$newest.new"
for package in new/*.deb; do dpkg-deb -x "$package" "$newest.new"; done
rm -r new
mv "$newest.new" "$newest"
echo "$newest"
