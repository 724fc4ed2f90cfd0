//! A capture misses nothing, or says that it did.

use anyhow::{Result, ensure};
use dns_proxy_tests::{Capture, Netns, port53, require_root_and_bpf};
use std::net::UdpSocket;

/// Sends datagrams over loopback, where each passes twice: out and in.
fn send(netns: &Netns, count: usize, length: usize) -> Result<()> {
    netns.run(|| {
        let _listener = UdpSocket::bind("127.0.0.1:53")?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..count {
            socket.send_to(&vec![7; length], "127.0.0.1:53")?;
        }
        Ok(())
    })?
}

#[test]
fn every_packet_of_a_burst_is_there_without_waiting() -> Result<()> {
    require_root_and_bpf();
    let netns = Netns::new()?;
    let mut capture = Capture::on(&netns, "lo")?;
    send(&netns, 5_000, 40)?;
    assert_eq!(port53(capture.packets()?).len(), 10_000);
    send(&netns, 1, 600)?;
    let packets = capture.stop()?;
    let last = port53(&packets)[10_000];
    assert_eq!((last.length, last.payload.len()), (600, 512));
    Ok(())
}

#[test]
fn a_capture_that_lost_packets_is_an_error() -> Result<()> {
    require_root_and_bpf();
    let netns = Netns::new()?;
    let capture = Capture::with_buffer(&netns, "lo", 4_096)?;
    send(&netns, 200, 40)?;
    let error = capture.stop().expect_err("4 kB hold no 400 packets").to_string();
    ensure!(error.starts_with("the capture on lo lost "), "{error}");
    Ok(())
}

#[test]
fn a_capture_sees_one_interface_only_and_a_missing_one_is_an_error() -> Result<()> {
    require_root_and_bpf();
    let netns = Netns::new()?;
    netns.veth("one", &netns, "two")?;
    let capture = Capture::on(&netns, "one")?;
    send(&netns, 3, 40)?;
    assert_eq!(port53(&capture.stop()?).len(), 0);
    assert!(Capture::on(&netns, "three").is_err());
    Ok(())
}
