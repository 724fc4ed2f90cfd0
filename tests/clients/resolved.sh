# Runs systemd-resolved with the container's nameserver, asks its stub, and ends it: NAME TYPE.
# It wants a user of its own, and a place of its own in /run.
if [ "$3" != inside ]; then
    exec unshare --mount sh "$0" "$1" "$2" inside
fi
nameserver=$(sed -n 's/^nameserver //p' /etc/resolv.conf)
mount -t tmpfs tmpfs /run
for file in passwd group; do
    { cat /etc/$file; echo 'systemd-resolve:x:997:997::/:/usr/sbin/nologin'; } |
        cut -d: -f"$([ $file = passwd ] && echo 1-7 || echo 1-4)" >/run/$file
    mount --bind /run/$file /etc/$file
done
mkdir -p /run/systemd/resolve /run/systemd/resolved.conf.d
chown 997:997 /run/systemd/resolve
cat >/run/systemd/resolved.conf.d/test.conf <<CONF
[Resolve]
DNS=$nameserver
FallbackDNS=
LLMNR=no
MulticastDNS=no
DNSSEC=no
CONF
"$RESOLVED" >/run/resolved.log 2>&1 &
until ss -Hlnu 'sport = :53' | grep -q 127.0.0.53; do
    kill -0 $! || { cat /run/resolved.log; exit 1; }
    sleep 0.05
done
dig +short +tries=1 +time=5 @127.0.0.53 "$1" "$2"
kill $!
