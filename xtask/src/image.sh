# Builds the image where no container engine runs and no registry can be reached, as root: with a
# Docker engine of its own, which ends with this script, and a base image made from Debian's packages
# with this machine's apt sources and authorities.
#
# image.sh STATE VERSION REVISION OUT
set -eu
state=$1 version=$2 revision=$3 out=$4
mkdir -p "$state"
# In a mount namespace of our own (unshare -m): cgroup v2 alone, and no containerd of the machine's.
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/dns-proxy-image.$$ /run/containerd
echo $$ >/sys/fs/cgroup/dns-proxy-image.$$/cgroup.procs
mount -t tmpfs tmpfs /run/containerd

base=$state/bookworm
if [ ! -e "$base.done" ]; then
    rm -rf "$base"
    debootstrap --variant=minbase bookworm "$base" >/dev/null
    rm -f "$base/etc/apt/sources.list"
    cp -r /etc/apt/sources.list* "$base/etc/apt/"
    mkdir -p "$base/usr/local/share/ca-certificates" "$base/etc/ssl/certs"
    cp -r /usr/local/share/ca-certificates "$base/usr/local/share/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$base/etc/ssl/certs/"
    rm -rf "$base"/var/cache/apt/archives/*.deb
    touch "$base.done"
fi

sockets=$(mktemp -d)
export DOCKER_HOST="unix://$sockets/docker.sock"
dockerd --data-root "$state/docker" --exec-root "$sockets/exec" --pidfile "$sockets/pid" \
    --host "$DOCKER_HOST" --exec-opt native.cgroupdriver=cgroupfs \
    --cgroup-parent "/dns-proxy-image.$$" --bridge=none --iptables=false --ip-forward=false \
    --ip-masq=false >"$state/dockerd.log" 2>&1 </dev/null &
engine=$!
end() {
    kill "$engine" 2>/dev/null || :
    wait "$engine" || :
    rm -rf "$sockets"
}
trap end EXIT
trap 'exit 130' INT TERM HUP
docker=/usr/bin/docker
tries=0
until "$docker" version >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] || { cat "$state/dockerd.log" >&2; exit 1; }
    sleep 0.2
done
"$docker" image inspect debian:bookworm-slim >/dev/null 2>&1 ||
    tar -C "$base" -c . | "$docker" import -c 'CMD ["bash"]' - debian:bookworm-slim >/dev/null
DOCKER_BUILDKIT=0 "$docker" build --quiet --network host --tag "dns-proxy:$version" --tag dns-proxy \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" .
"$docker" save --output "$out" "dns-proxy:$version" dns-proxy
