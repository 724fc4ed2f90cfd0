//! Whoever is not meant to use the proxy cannot.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dns_proxy_tests::{
    Container, Daemon, Netns, Stage, Zone,
    clients::dig,
    wire::{frame, query, random_id},
};
use hickory_proto::rr::RecordType;

/// Long enough for any answer to come, were there one.
const WAIT: Duration = Duration::from_millis(300);

/// The port of the listener in a namespace, from the daemon's log.
fn port(daemon: &Daemon, container: &Container) -> Result<u16> {
    let inode = format!("netns={} ", container.netns().inode()?);
    let log = daemon.log().text();
    let line = log.lines().find(|line| line.contains("namespace ready") && line.contains(&inode));
    let words = line.context("not served")?.split_whitespace();
    let port = words.filter_map(|word| word.strip_prefix("port=")).next();
    Ok(port.context("no port in the log line")?.parse()?)
}

/// Whether a query over UDP gets an answer.
fn answers_udp(from: &Netns, to: SocketAddr) -> Result<bool> {
    from.run(move || -> Result<bool> {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(WAIT))?;
        let query = query(random_id(), "example.test", RecordType::A)?;
        if socket.send_to(&query, to).is_err() {
            return Ok(false); // no route there
        }
        match socket.recv(&mut [0; 512]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    })?
}

/// Whether a query over TCP gets an answer.
fn answers_tcp(from: &Netns, to: SocketAddr) -> Result<bool> {
    from.run(move || -> Result<bool> {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, WAIT) else {
            return Ok(false);
        };
        stream.set_read_timeout(Some(WAIT))?;
        // A listener that lets nobody in closes, at once or a moment later.
        let query = frame(&query(random_id(), "example.test", RecordType::A)?);
        Ok(stream.write_all(&query).and_then(|()| stream.read_exact(&mut [0; 2])).is_ok())
    })?
}

#[test]
fn neighbours_cannot_reach_the_listener() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let neighbour = stage.world.container("neighbour")?;
    let daemon = stage.daemon(&[&container])?;
    // So that there are tokens.
    for server in ["@8.8.8.8", "@2001:4860:4860::8888"] {
        ensure!(dig(&container, &["example.test", server])? == [Zone::Encrypted.a().to_string()]);
    }
    let port = port(&daemon, &container)?;
    let token6 = "fd90:2c8e:591c:53::2";
    // The way to the token by the container, as an attacker on the same network would try it.
    for (netns, via) in [
        (neighbour.netns(), "fd88:0:0:2::1".to_owned()),
        (stage.world.host(), container.addresses().v6.to_string()),
    ] {
        netns.ip(&["-6", "route", "replace", "fd90:2c8e:591c:53::/64", "via", &via])?;
    }
    let link = container.addresses().host_link.clone();
    stage.world.host().sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    container.netns().sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    stage.world.host().ip(&["route", "add", "127.64.0.0/16", "dev", &link])?;

    let targets: [IpAddr; 4] = [
        container.addresses().v4.into(),
        container.addresses().v6.into(),
        token6.parse()?,
        Ipv4Addr::new(127, 64, 0, 1).into(),
    ];
    for target in targets {
        let to = SocketAddr::new(target, port);
        for (who, from) in [("a neighbour", neighbour.netns()), ("the host", stage.world.host())] {
            ensure!(!answers_udp(from, to)?, "{who} got an answer from {to} over UDP");
            ensure!(!answers_tcp(from, to)?, "{who} got an answer from {to} over TCP");
        }
    }
    ensure!(stage.upstream.journal().queries.len() == 2, "nothing more went upstream");
    // The container itself still can.
    ensure!(dig(&container, &["example.test", "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    Ok(())
}

#[test]
fn addresses_that_are_nobodys_token_get_no_answer() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let other = stage.world.container("other")?;
    let daemon = stage.daemon(&[&container, &other])?;
    for app in [&container, &other] {
        ensure!(dig(app, &["example.test", "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    }
    let port = port(&daemon, &container)?;
    // Tokens are numbered from 1 in the order of first use.
    let token = |n: u8| SocketAddr::new(Ipv4Addr::new(127, 64, 0, n).into(), port);
    ensure!(answers_udp(container.netns(), token(1))?, "its own token works");
    ensure!(answers_tcp(container.netns(), token(1))?, "its own token works over TCP");
    for (what, to) in [
        ("the other namespace's token", token(2)),
        ("a token that was never given out", token(3)),
        ("an ordinary loopback address", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
        ("the container's own address", SocketAddr::new(container.addresses().v4.into(), port)),
    ] {
        ensure!(!answers_udp(container.netns(), to)?, "{what} was answered");
        ensure!(!answers_tcp(container.netns(), to)?, "{what} was answered over TCP");
    }
    Ok(())
}
