"""A hostile container: makes itself a network namespace that nobody can serve, since every port that
a listener could have is taken, and asks from there without end."""

import ctypes
import fcntl
import socket
import struct

CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8914, 1



def take_ports():
    """Whether the daemon was not there first, as it is if it looks around in this very moment."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        raise OSError("unshare")
    sockets = []
    for port in range(61053, 62000):
        sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        try:
            sockets[-1].bind(("", port))
        except OSError:
            return None
    return sockets


while (taken := take_ports()) is None:
    pass
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
while True:
    try:
        sock.sendto(b"x" * 64, ("8.8.8.8", 53))
    except OSError:
        pass
