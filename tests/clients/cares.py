"""Asks through c-ares."""

import select
import sys

import pycares

TYPES = {"A": pycares.QUERY_TYPE_A, "TXT": pycares.QUERY_TYPE_TXT}
BAD = pycares.ARES_SOCKET_BAD

flags = pycares.ARES_FLAG_USEVC if "usevc" in sys.argv[3:] else 0
channel = pycares.Channel(flags=flags, timeout=5, tries=1)
channel.query(sys.argv[2], TYPES[sys.argv[1]], lambda found, error: print(found, error))
while any(sockets := channel.getsock()):
    readable, writable, _ = select.select(*sockets, [], 5)
    for fd in readable:
        channel.process_fd(fd, BAD)
    for fd in writable:
        channel.process_fd(BAD, fd)
    if not readable and not writable:
        channel.process_fd(BAD, BAD)
