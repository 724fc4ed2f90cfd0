#!/bin/busybox sh
# The first process of a virtual machine: mounts what hosts have, runs /script, says how it ended.
export PATH=/bin HOME=/ TMPDIR=/tmp
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
for module in inet_diag tcp_diag udp_diag veth; do
    [ -f /modules/$module.ko ] && insmod /modules/$module.ko
done
ip link set lo up
v1() {
    mkdir -p /sys/fs/cgroup/$1
    mount -t cgroup -o $1 cgroup /sys/fs/cgroup/$1
}
case $(cat /cgroups) in
    V2) mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
    Hybrid)
        mount -t tmpfs tmpfs /sys/fs/cgroup
        for controller in cpu memory pids; do v1 $controller; done
        mkdir /sys/fs/cgroup/unified
        mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
        ;;
    V1)
        mount -t tmpfs tmpfs /sys/fs/cgroup
        for controller in cpu memory pids; do v1 $controller; done
        ;;
esac
echo "GUEST $(uname -r)"
sh -e /script
echo "GUEST-RC=$?"
sync
reboot -f
