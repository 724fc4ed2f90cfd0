"""Asks through dnspython: TYPE NAME TRANSPORT [the EDNS payload size]."""

import sys

import dns.resolver

qtype, name, transport, *payload = sys.argv[1:]
resolver = dns.resolver.Resolver()
if payload:
    resolver.use_edns(0, 0, int(payload[0]))
for record in resolver.resolve(name, qtype, tcp=transport == "tcp"):
    print(record)
