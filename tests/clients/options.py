"""What becomes of socket options in a new network namespace: prints one line for each."""

import ctypes
import socket

IP_RECVERR, CLONE_NEWNET = 11, 0x40000000
DEVICE = b"lo".ljust(5000, b"\0")  # longer than what a program is shown of an option


def recverr(kind):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.SOL_IP, IP_RECVERR, 1)
        return sock.getsockopt(socket.SOL_IP, IP_RECVERR)


def others():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_IP, socket.IP_TTL, 7)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE)
        device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        return sock.getsockopt(socket.SOL_IP, socket.IP_TTL), device.rstrip(b"\0").decode()


def enter_new_namespace():
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        raise OSError("unshare")


print("served", recverr(socket.SOCK_DGRAM), recverr(socket.SOCK_STREAM), *others())
# The daemon looks around every second: it may see us in one of them before we do anything.
new = []
for _ in range(8):
    enter_new_namespace()
    new.append(recverr(socket.SOCK_DGRAM))
print("new", min(new))
enter_new_namespace()
print("new", recverr(socket.SOCK_STREAM), *others())
