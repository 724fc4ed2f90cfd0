# Becomes an unbound that asks what /etc/resolv.conf says: the arguments are options of its server.
{
    cat <<CONF
server:
  interface: 127.0.0.1@5399
  do-daemonize: no
  use-syslog: no
  username: ""
  chroot: ""
  directory: ""
  num-threads: 1
  module-config: "iterator"
  local-zone: "test." nodefault
CONF
    printf '  %s\n' "$@"
    echo 'remote-control:'
    echo '  control-enable: no'
    echo 'forward-zone:'
    echo '  name: "."'
    sed -n 's/^nameserver /  forward-addr: /p' /etc/resolv.conf
} >/run/dns-proxy/unbound.conf
exec unbound -d -p -c /run/dns-proxy/unbound.conf
