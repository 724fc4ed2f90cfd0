//! Asks so many names a second for a while, come what may, and counts what became of each; and does
//! what nobody should, as hard as it can.

use crate::shapes::udp_socket;
use anyhow::{Context as _, Result, bail};
use dns_proxy_tests::wire::{Answer, frame, query, random, random_id};
use dns_proxy_tests::{Zone, expected_a};
use hickory_proto::rr::RecordType;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Threads that share the rate: so many queries may be late at a time.
const ASKERS: u32 = 32;
/// A connection of a flood sends so many octets at a time.
const DRIP: Duration = Duration::from_millis(200);

/// What became of the queries.
#[derive(Debug, Default)]
struct Count {
    asked: AtomicU64,
    /// By the encrypted upstream.
    encrypted: AtomicU64,
    /// By the plaintext nameserver.
    plaintext: AtomicU64,
    /// By an error of the socket.
    refused: AtomicU64,
    /// By an error code.
    failed: AtomicU64,
    /// Not at all.
    lost: AtomicU64,
}

/// Asks `rate` names below `suffix` a second, each on a socket of its own, as stub resolvers do.
pub(crate) fn run(
    seconds: u32,
    rate: u32,
    server: SocketAddr,
    suffix: &str,
    limit: Duration,
) -> Result<bool> {
    let (count, next, run) = (Count::default(), AtomicU64::new(0), random());
    let started = Instant::now();
    let end = Duration::from_secs(seconds.into());
    thread::scope(|scope| {
        for _ in 0..ASKERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let due = Duration::from_nanos(number * 1_000_000_000 / u64::from(rate));
                    if due >= end {
                        return;
                    }
                    thread::sleep(due.saturating_sub(started.elapsed()));
                    let name = format!("q{number}-{run:x}.{suffix}");
                    count.asked.fetch_add(1, Ordering::Relaxed);
                    ask(server, &name, limit, &count).fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "asked={} encrypted={} plaintext={} refused={} failed={} lost={}",
        get(&count.asked),
        get(&count.encrypted),
        get(&count.plaintext),
        get(&count.refused),
        get(&count.failed),
        get(&count.lost)
    );
    Ok(true)
}

/// Asks, and says where to count what came.
fn ask<'a>(server: SocketAddr, name: &str, limit: Duration, count: &'a Count) -> &'a AtomicU64 {
    let attempt = || -> Result<Answer> {
        let socket = udp_socket(server, limit)?;
        socket.connect(server)?;
        let query = query(random_id(), name, RecordType::A)?;
        socket.send(&query)?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer)?;
        Answer::to(&query, &buffer[..length])
    };
    match attempt() {
        Ok(answer) if answer.addresses == [IpAddr::V4(expected_a(name))] => &count.encrypted,
        Ok(answer) if answer.addresses == [IpAddr::V4(Zone::Plaintext.a())] => &count.plaintext,
        Ok(_) => &count.failed,
        Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => &count.lost,
            _ => &count.refused,
        },
    }
}

/// Does one thing that nobody should, as hard as one process can, for a while.
pub(crate) fn flood(seconds: u32, kind: &str, server: SocketAddr, suffix: &str) -> Result<bool> {
    let end = Instant::now() + Duration::from_secs(seconds.into());
    let run = random();
    match kind {
        // Never reads an answer.
        "names" | "garbage" | "giant" => {
            let socket = udp_socket(server, DRIP)?;
            socket.connect(server)?;
            let mut sent = 0_u64;
            while Instant::now() < end {
                let message = match kind {
                    "names" => {
                        query(random_id(), &format!("f{sent}-{run:x}.{suffix}"), RecordType::A)?
                    }
                    "garbage" => random().to_be_bytes().repeat(1 + sent as usize % 40),
                    _ => vec![0x55; 60_000],
                };
                // Full buffers and refusals are what a flood is about.
                sent += u64::from(socket.send(&message).is_ok());
            }
            println!("sent={sent}");
        }
        // A length, and then an octet now and then.
        "slowloris" => {
            let mut streams = Vec::new();
            while Instant::now() < end {
                if streams.len() < 2_000
                    && let Ok(mut stream) = TcpStream::connect_timeout(&server, DRIP)
                {
                    stream.set_nonblocking(true)?;
                    // Whoever is thrown out comes again.
                    if stream.write_all(&[4, 0]).is_ok() {
                        streams.push(stream);
                    }
                } else {
                    thread::sleep(DRIP);
                }
                if streams.len() % 100 == 0 {
                    streams.retain_mut(|stream| stream.write(&[0]).is_ok() && is_open(stream));
                }
            }
            println!("open={}", streams.len());
        }
        // Asks on as many connections as it gets and never reads.
        "unread" => {
            let query = frame(&query(random_id(), &format!("big.{suffix}"), RecordType::TXT)?);
            let mut streams = Vec::new();
            while Instant::now() < end {
                match TcpStream::connect_timeout(&server, DRIP) {
                    Ok(stream) if streams.len() < 200 => {
                        stream.set_nonblocking(true)?;
                        streams.push(stream);
                    }
                    _ => thread::sleep(Duration::from_millis(1)),
                }
                for stream in &mut streams {
                    // It is full, or closed.
                    let _ = stream.write(&query);
                }
            }
            println!("open={}", streams.len());
        }
        _ => bail!("{kind}: no such flood"),
    }
    Ok(true)
}

fn is_open(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// Reads a number of seconds, queries and the like.
pub(crate) fn number(text: &str) -> Result<u32> {
    text.parse().with_context(|| format!("{text} is no number"))
}
