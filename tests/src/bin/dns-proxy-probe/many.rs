//! Many different names at once, each answer checked: nothing lost, nothing mixed up.

use crate::shapes::{ask_tcp, is_good, udp_socket};
use anyhow::{Result, ensure};
use dns_proxy_tests::expected_a;
use dns_proxy_tests::wire::{Answer, query, random, random_id};
use hickory_proto::rr::RecordType;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What became of the queries.
#[derive(Debug, Default)]
struct Count {
    ok: AtomicUsize,
    lost: AtomicUsize,
    wrong: AtomicUsize,
}

pub(crate) fn run(
    total: usize,
    concurrency: usize,
    server: SocketAddr,
    suffix: &str,
    limit: Duration,
) -> Result<bool> {
    let (next, count, run) = (AtomicUsize::new(0), Count::default(), random());
    thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::Relaxed)
                    && number < total
                {
                    let name = format!("q{number}-{run:x}.{suffix}");
                    let what = match ask(server, &name, limit) {
                        Ok(true) => &count.ok,
                        Ok(false) => &count.wrong,
                        Err(_) => &count.lost,
                    };
                    what.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let (ok, lost, wrong) =
        (count.ok.into_inner(), count.lost.into_inner(), count.wrong.into_inner());
    println!("sent={total} ok={ok} lost={lost} wrong={wrong}");
    Ok(ok == total)
}

/// Asks many nameservers for a name, as a recursive resolver does, and each until it answers. What
/// was connected before must stay so, and go on being answered.
pub(crate) fn recurse(count: u32, name: &str, limit: Duration) -> Result<bool> {
    let old = SocketAddr::from(([8, 8, 8, 8], 53));
    let connected = udp_socket(old, limit)?;
    connected.connect(old)?;
    let mut stream = TcpStream::connect_timeout(&old, limit)?;
    let socket = udp_socket(old, limit)?;
    let query = query(random_id(), name, RecordType::A)?;
    let mut buffer = [0; 4096];
    let (mut refused, mut wrong) = (0, 0);
    let started = Instant::now();
    for n in 0..count {
        let server = nameserver(n);
        while socket.send_to(&query, server).is_err() {
            refused += 1;
            ensure!(refused < 1_000_000, "refused for good after {n}");
            thread::sleep(Duration::from_millis(1));
        }
        let (length, from) = socket.recv_from(&mut buffer)?;
        wrong += u32::from(from != server || Answer::to(&query, &buffer[..length]).is_err());
        // Often enough for the proxy not to close the stream (RFC 7766 section 6.2.3).
        if n % 100 == 0 {
            ensure!(is_good(&ask_tcp(&mut stream, name)?) && stream.peer_addr()? == old);
        }
    }
    // Idle all the while.
    connected.send(&query)?;
    let (length, from) = connected.recv_from(&mut buffer)?;
    ensure!(from == old && connected.peer_addr()? == old, "the old connection is to {from}");
    ensure!(is_good(&Answer::to(&query, &buffer[..length])?));
    let seconds = started.elapsed().as_secs_f32();
    println!("asked={count} wrong={wrong} refused={refused} seconds={seconds:.1}");
    Ok(wrong == 0)
}

/// Holds connections until it is told to end, or ended.
pub(crate) fn hold(server: SocketAddr, count: usize, limit: Duration) -> Result<bool> {
    let connections: Vec<_> =
        (0..count).map_while(|_| TcpStream::connect_timeout(&server, limit).ok()).collect();
    println!("connected={}", connections.len());
    std::io::stdin().read_line(&mut String::new())?;
    Ok(true)
}

/// Sends a query to each of many nameservers; how many the kernel took and refused.
pub(crate) fn servers(count: u32) -> Result<bool> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let query = query(random_id(), "example.test", RecordType::A)?;
    let (mut sent, mut refused) = (0, 0);
    for n in 0..count {
        match socket.send_to(&query, nameserver(n)) {
            Ok(_) => sent += 1,
            Err(_) => refused += 1,
        }
    }
    println!("sent={sent} refused={refused}");
    Ok(refused == 0)
}

/// One of many, all of them for benchmarks (RFC 2544).
fn nameserver(n: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n), 53))
}

/// Asks on a socket of its own, as a stub resolver does; whether the answer is this name's.
fn ask(server: SocketAddr, name: &str, limit: Duration) -> Result<bool> {
    let socket = udp_socket(server, limit)?;
    socket.connect(server)?;
    let query = query(random_id(), name, RecordType::A)?;
    socket.send(&query)?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    let answer = Answer::to(&query, &buffer[..length]);
    Ok(answer.is_ok_and(|answer| answer.addresses == [IpAddr::V4(expected_a(name))]))
}
