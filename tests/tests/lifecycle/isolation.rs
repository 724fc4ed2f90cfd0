//! Whoever is not meant to use the proxy cannot.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dns_proxy_tests::{
    Container, Daemon, Netns, Stage, Zone,
    clients::{dig, probe},
    process::output,
    sockopt::freebind,
    wire::{frame, query, random_id},
};
use hickory_proto::rr::RecordType;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
    sockopt::{ReuseAddr, ReusePort},
};

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
    // By hand, with a source that looks like the container's own.
    for (to, source) in [(targets[2], "::1"), (targets[3], "127.0.0.1")] {
        let to = SocketAddr::new(to, port).to_string();
        let forged = ["forged", &to, "example.test", source];
        ensure!(probe(&neighbour)?.args(forged).status()?.success(), "{forged:?}");
    }
    ensure!(stage.upstream.journal().queries.len() == 2, "nothing more went upstream");
    // The container itself still can.
    ensure!(dig(&container, &["example.test", "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    let strangers = daemon.stop_and_count("strangers")?;
    ensure!(strangers >= 8, "{strangers} counted"); // martians never get as far as the door
    Ok(())
}

#[test]
fn addresses_that_are_nobodys_token_get_no_answer() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let other = stage.world.container("other")?;
    // A guard would keep us out, who are not of the scope.
    let daemon = stage.daemon_with(&[&container, &other], &["--guard=off"])?;
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
    ensure!(daemon.stop_and_count("denied")? == 8);
    Ok(())
}

/// The tokens of a container that has asked one nameserver of each family.
fn tokens(stage: &Stage, daemon: &Daemon, container: &Container) -> Result<[SocketAddr; 2]> {
    for server in ["@8.8.8.8", "@2001:4860:4860::8888"] {
        ensure!(dig(container, &["example.test", server])? == [Zone::Encrypted.a().to_string()]);
    }
    ensure!(stage.upstream.journal().queries.len() == 2);
    let port = port(daemon, container)?;
    let v6 = Ipv6Addr::new(0xfd90, 0x2c8e, 0x591c, 0x53, 0, 0, 0, 2);
    Ok([(Ipv4Addr::new(127, 64, 0, 1), port).into(), (v6, port).into()])
}

/// What becomes of somebody who dials a token, in each way there is.
fn dial(from: &Container, tokens: &[SocketAddr]) -> Result<Vec<String>> {
    let mut outcomes = Vec::new();
    for to in tokens.iter().map(ToString::to_string) {
        for args in [
            ["udp-connected", &to, "example.test"],
            ["udp-unconnected", "example.test", &to],
            ["tcp", &to, "example.test"],
        ] {
            let done = probe(from)?.args(["--timeout", "0.3"]).args(args).output()?;
            outcomes.push(String::from_utf8(done.stdout)?);
        }
    }
    Ok(outcomes)
}

#[test]
fn tokens_are_refused_to_those_who_dial_them() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let sibling = stage.world.beside("sibling", &container)?;
    let unselected = stage.world.beside("unselected", &container)?;
    let daemon = stage.daemon(&[&container, &sibling])?;
    let tokens = tokens(&stage, &daemon, &container)?;
    // All of them are below the cgroup that the programs are attached to.
    for who in [&container, &sibling, &unselected] {
        for outcome in dial(who, &tokens)? {
            ensure!(outcome == "error=PermissionDenied\n", "{outcome}");
        }
    }
    ensure!(stage.upstream.journal().queries.len() == 2, "nothing more went upstream");
    // What else listens there is nobody's business but theirs.
    let theirs = container.netns().run(|| UdpSocket::bind("127.64.0.1:7"))??;
    theirs.set_read_timeout(Some(WAIT))?;
    let args = ["--timeout", "0.1", "udp-connected", "127.64.0.1:7", "example.test"];
    probe(&container)?.args(args).output()?;
    theirs.recv(&mut [0; 512]).context("a service on an address like a token")?;
    ensure!(daemon.stop_and_count("refused")? == 18);
    Ok(())
}

#[test]
fn tokens_are_of_no_use_to_processes_that_no_program_watches_over() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let unselected = stage.world.beside("unselected", &container)?;
    let daemon = stage.daemon(&[&container])?;
    let tokens = tokens(&stage, &daemon, &container)?;
    for outcome in dial(&unselected, &tokens)? {
        let silence = ["error=WouldBlock\n", "error=TimedOut\n"].contains(&outcome.as_str());
        ensure!(silence || outcome.ends_with(" error=TimedOut\n"), "{outcome}");
    }
    ensure!(stage.upstream.journal().queries.len() == 2, "nothing more went upstream");
    ensure!(daemon.stop_and_count("strangers")? >= 6);
    Ok(())
}

#[test]
fn packets_made_by_hand_get_no_answer() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let tokens = tokens(&stage, &daemon, &container)?;
    let witness = stage.witness(&container)?;
    let own = container.addresses();
    let sources: [[IpAddr; 3]; 2] = [
        [Ipv4Addr::LOCALHOST.into(), own.v4.into(), "9.9.9.9".parse()?],
        [Ipv6Addr::LOCALHOST.into(), own.v6.into(), "2620:fe::fe".parse()?],
    ];
    for (to, sources) in tokens.iter().zip(sources) {
        for source in sources {
            let forged = ["forged", &to.to_string(), "example.test", &source.to_string()];
            ensure!(probe(&container)?.args(forged).status()?.success(), "{forged:?}");
        }
    }
    // Whatever came before this one has been dealt with.
    ensure!(dig(&container, &["example.test", "@8.8.8.8"])?.len() == 1);
    ensure!(stage.upstream.journal().queries.len() == 3, "nothing else went upstream");
    witness.saw_only_tls()?;
    ensure!(daemon.stop_and_count("strangers")? == 6);
    Ok(())
}

/// Else whoever owns the address would get the answer, in plaintext and from a token.
#[test]
fn clients_with_a_borrowed_address_get_no_answer() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let witness = stage.witness(&container)?;
    let own = container.addresses().v6.to_string();
    let server = "2001:4860:4860::8888";
    for (source, answered) in [(own.as_str(), true), ("2620:fe::fe", false)] {
        let args = ["--timeout", "0.5", "borrowed", server, "example.test", source];
        let done = probe(&container)?.args(args).output()?;
        ensure!(done.status.success() == answered, "{source}: {done:?}");
    }
    ensure!(stage.upstream.journal().queries.len() == 1, "only one went upstream");
    witness.saw_only_tls()?;
    ensure!(daemon.stop_and_count("denied")? == 1);
    Ok(())
}

#[test]
fn marks_do_not_exempt() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let witness = stage.witness(&container)?;
    for mark in ["1", "53", "853", "61053", "2147483648", "4294967295"] {
        for server in ["8.8.8.8", "2001:4860:4860::8888"] {
            let args = ["marked", server, "example.test", mark];
            output(probe(&container)?.args(args))?;
        }
    }
    witness.saw_only_tls()
}

#[test]
fn nobody_can_answer_in_our_stead() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let tokens = tokens(&stage, &daemon, &container)?;
    for at in tokens {
        for kind in [SockType::Datagram, SockType::Stream] {
            let bound = container.netns().run(|| -> Result<nix::Result<()>> {
                let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
                setsockopt(&socket, ReuseAddr, &true)?;
                setsockopt(&socket, ReusePort, &true)?;
                freebind(&socket, at.ip())?;
                Ok(bind(socket.as_raw_fd(), &SockaddrStorage::from(at)))
            })??;
            ensure!(bound == Err(nix::Error::EADDRINUSE), "{at} {kind:?}: {bound:?}");
        }
    }
    Ok(())
}

#[test]
fn the_programs_of_two_daemons_do_not_keep_each_others_clients_out() -> Result<()> {
    let stage = Stage::new()?;
    let inner = stage.world.container("inner")?;
    let beside = stage.world.beside("beside", &inner)?;
    let world = stage.world.cgroup().path()?;
    let start = |pattern: &str| -> Result<Daemon> {
        let mut args = stage.run_args(&[])?;
        args.push(format!("--cgroup={world}/{pattern}"));
        let daemon = Daemon::start(&stage.world, &args)?;
        daemon.wait_until_serving(inner.netns())?;
        Ok(daemon)
    };
    // All attach to the cgroup above both; the last one to each, further down.
    for patterns in [["inner*", "beside*"], ["beside*", "inner*"], ["beside*", "inner"]] {
        let _daemons = [start(patterns[0])?, start(patterns[1])?];
        for container in [&inner, &beside] {
            for server in ["@8.8.8.8", "@2001:4860:4860::8888", "@9.9.9.9"] {
                let answer = dig(container, &["example.test", server])?;
                ensure!(answer == [Zone::Encrypted.a().to_string()], "{patterns:?}: {answer:?}");
            }
        }
    }
    Ok(())
}
