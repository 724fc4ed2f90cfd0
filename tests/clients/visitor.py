"""Asks 8.8.8.8 from inside the network namespace named by the path, as dockerd does: a thread goes
there, makes a socket, and comes home; the socket stays. Prints whether later queries, each sent only
once, were answered."""

import ctypes
import os
import socket
import sys
import threading
import time

CLONE_NEWNET = 0x40000000
QUERY = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\7example\4test\0\0\1\0\1"
libc = ctypes.CDLL(None, use_errno=True)


def enter(path):
    with open(path) as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {path}")


def ask():
    try:
        visiting.sendto(QUERY, ("8.8.8.8", 53))
        return visiting.recv(512)[:2] == QUERY[:2]
    except OSError:
        return False


def visit():
    global visiting
    home = f"/proc/{os.getpid()}/task/{os.getpid()}/ns/net"
    enter(sys.argv[1])
    visiting = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    visiting.settimeout(2)
    # The first query is refused until the namespace is ready for it.
    while not ask():
        time.sleep(0.05)
    enter(home)


thread = threading.Thread(target=visit)
thread.start()
thread.join()
for _ in range(3):
    time.sleep(1.5)
    print("answered" if ask() else "unanswered")
