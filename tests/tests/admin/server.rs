//! Whoever sends what to the admin port: nobody keeps a probe out.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use dns_proxy_tests::http;

use crate::place::{ADMIN, Place};

#[test]
fn several_requests_go_over_one_connection() -> Result<()> {
    let place = Place::new()?;
    let _daemon = place.daemon(&[])?;
    let head = "HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let last = "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = http::exchange(&place.netns, ADMIN, format!("{head}{head}{last}").as_bytes())?;
    let all = format!("{}\r\n\r\n{}", answer.head, answer.body);
    ensure!(all.matches("HTTP/1.1 200 OK\r\n").count() == 3, "{all}");
    ensure!(all.matches("Content-Length: 17\r\n").count() == 3, "{all}");
    ensure!(all.matches("all threads turn\n").count() == 1, "{all}");
    Ok(())
}

#[test]
fn what_is_not_there_or_not_allowed_is_said() -> Result<()> {
    let place = Place::new()?;
    let _daemon = place.daemon(&[])?;
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    for (request, code) in [
        ("GET /nothing HTTP/1.1\r\n\r\n", 404),
        ("GET /../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        ("DELETE /healthz HTTP/1.1\r\n\r\n", 405),
        ("POST /healthz HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd", 405),
        ("GET /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (&long, 431),
        ("\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03", 400),
    ] {
        let request = request.replace("HTTP/1.1\r\n\r\n", "HTTP/1.1\r\nConnection: close\r\n\r\n");
        let answer = http::exchange(&place.netns, ADMIN, request.as_bytes())?;
        ensure!(answer.code == code, "{request:?}: {answer:?}");
    }
    ensure!(
        http::exchange(&place.netns, ADMIN, b"DELETE / HTTP/1.1\r\n\r\n")?.field("allow")
            == Some("GET, HEAD")
    );
    Ok(())
}

#[test]
fn whoever_holds_connections_open_keeps_no_probe_out() -> Result<()> {
    let place = Place::new()?;
    let daemon = place.daemon(&[])?;
    let before = daemon.fds()?;
    // Some say nothing, some stop in the middle of a request.
    let held: Vec<TcpStream> = (0..200)
        .map(|n| {
            let mut stream = http::connect(&place.netns, ADMIN)?;
            if n % 2 == 0 {
                stream.write_all(b"GET /healthz HT")?;
            }
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    let begun = Instant::now();
    ensure!(place.get("/healthz")?.code == 200);
    ensure!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    ensure!(daemon.fds()? <= before + 70, "{} descriptors, before {before}", daemon.fds()?);
    drop(held);
    ensure!(daemon.wait_fds(Duration::from_secs(10), |now| now <= before), "left open");
    Ok(())
}

#[test]
fn half_a_request_is_waited_for_only_so_long() -> Result<()> {
    let place = Place::new()?;
    let _daemon = place.daemon(&[])?;
    let mut slow = http::connect(&place.netns, ADMIN)?;
    slow.write_all(b"GET /healthz HTTP/1.1\r\n")?;
    let begun = Instant::now();
    let mut octets = Vec::new();
    ensure!(slow.read_to_end(&mut octets)? == 0, "{octets:?}");
    let took = begun.elapsed();
    ensure!((Duration::from_secs(4)..Duration::from_secs(15)).contains(&took), "{took:?}");
    Ok(())
}
