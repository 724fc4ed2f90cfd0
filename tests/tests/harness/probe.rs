//! The probe's shapes, each against a nameserver nobody stands in front of.

use anyhow::{Result, ensure};
use dns_proxy_tests::clients::probe;
use dns_proxy_tests::process::output;
use dns_proxy_tests::world::NAMESERVERS;
use dns_proxy_tests::{Container, Netns, PlainServer, World, Zone, require_root_and_bpf};
use std::net::SocketAddr;

fn ask(container: &Container, args: &[&str]) -> Result<String> {
    output(probe(container)?.args(args))
}

#[test]
fn every_shape_of_socket_shows_the_server_it_asked() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let _nameserver = PlainServer::start(world.internet())?;
    let app = world.container("app")?;
    let name = "example.test";
    for (args, shown) in [
        (&["udp-connected", "8.8.8.8", name][..], "peer=8.8.8.8:53 from=8.8.8.8:53"),
        (&["udp-connected", "2620:fe::fe", name], "peer=[2620:fe::fe]:53 from=[2620:fe::fe]:53"),
        (&["udp-unconnected", name, "8.8.8.8", "9.9.9.9"], "server=9.9.9.9:53 from=9.9.9.9:53"),
        (&["tcp", "1.1.1.1", name], "peer=1.1.1.1:53"),
        (&["tcp", "2620:fe::fe", name], "peer=[2620:fe::fe]:53"),
        (&["udp-connected", "::ffff:8.8.8.8", name], "from=[::ffff:8.8.8.8]:53"),
        (&["tcp", "::ffff:8.8.8.8", name], "peer=[::ffff:8.8.8.8]:53"),
        (&["udp-unconnected", name, "::ffff:8.8.8.8"], "from=[::ffff:8.8.8.8]:53"),
        (&["peer-names", "8.8.8.8"], "udp=8.8.8.8:53"),
    ] {
        let printed = ask(&app, args)?;
        ensure!(printed.contains(shown), "{args:?} printed {printed}");
        let answer = Zone::Plaintext.a().to_string();
        ensure!(args[0] == "peer-names" || printed.contains(&answer), "{args:?}: {printed}");
    }
    Ok(())
}

#[test]
fn a_server_that_is_not_there_is_an_error_in_time() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let app = world.container("app")?;
    let silence = ["--timeout", "0.2", "udp-unconnected", "example.test", "203.0.113.1"];
    let error = ask(&app, &silence).expect_err("nobody answers").to_string();
    ensure!(error.contains("server=203.0.113.1:53 error=TimedOut"), "{error}");
    let refused = ["tcp", "8.8.8.8", "example.test"];
    let error = ask(&app, &refused).expect_err("nobody listens").to_string();
    ensure!(error.contains("error=ConnectionRefused"), "{error}");
    Ok(())
}

#[test]
fn many_queries_are_each_checked_against_their_name() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let app = world.container("app")?;
    let many = ["many", "200", "20", "8.8.8.8", "example.test"];
    let addresses = NAMESERVERS.map(|address| SocketAddr::new(address, 53));
    let right = PlainServer::start_on(world.internet(), &addresses, Zone::Encrypted)?;
    assert_eq!(ask(&app, &many)?, "sent=200 ok=200 lost=0 wrong=0\n");
    drop(right);
    let _wrong = PlainServer::start(world.internet())?;
    let error = ask(&app, &many).expect_err("all have one address").to_string();
    ensure!(error.contains("sent=200 ok=0 lost=0 wrong=200"), "{error}");
    Ok(())
}

#[test]
fn a_namespace_has_one_inode_and_one_cookie_from_everywhere() -> Result<()> {
    require_root_and_bpf();
    let (one, other) = (Netns::new()?, Netns::new()?);
    assert_eq!(one.inode()?, one.run(|| Netns::current().and_then(|ns| ns.inode()))??);
    assert_eq!(one.cookie()?, one.clone().cookie()?);
    assert_ne!(one.inode()?, other.inode()?);
    assert_ne!(one.cookie()?, other.cookie()?);
    Ok(())
}
