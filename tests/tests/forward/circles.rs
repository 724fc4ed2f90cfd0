//! Nameservers that lead back to us.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dns_proxy_tests::{PlainServer, Zone, eventually, process::Process, wire::Answer};
use hickory_proto::op::ResponseCode::{self, NoError, Refused, ServFail};

use crate::{
    packets::{A, plain_opt, query},
    place::{LIMIT, NAMED_UPSTREAM, Place},
};

/// A resolver that passes on to us whatever it is asked.
const BESIDE: &str = "127.0.0.9";
const ROUTE: &str = "--route=lab.test=127.0.0.9";

/// The response code for a name, and how long that took.
fn ask(place: &Place, name: &str) -> Result<(ResponseCode, Duration)> {
    let asked = query(1, name, A, &[&plain_opt()]);
    let begun = Instant::now();
    let answer = Answer::to(&asked, &place.udp()?.ask(&asked)?)?;
    Ok((answer.rcode, begun.elapsed()))
}

#[test]
fn a_nameserver_that_asks_us_in_turn_is_named_and_left_out() -> Result<()> {
    let place = Place::new()?;
    let _upstream = place.upstream()?;
    let mut dnsmasq = place.netns.command("dnsmasq");
    dnsmasq.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=root"]);
    dnsmasq.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--cache-size=0"]);
    dnsmasq.args([&format!("--listen-address={BESIDE}"), "--server=127.0.0.1"]);
    let dnsmasq = Process::spawn(dnsmasq)?;
    let daemon = place.daemon(&[NAMED_UPSTREAM], &[ROUTE])?;

    // dnsmasq gives up before we do.
    let (rcode, _) = ask(&place, "a.lab.test")?;
    ensure!(rcode == ServFail || rcode == Refused, "{rcode:?}");
    daemon.wait_for_log("asks us for them in turn", LIMIT)?;
    let named = daemon.log().lines();
    let line = named.iter().find(|line| line.contains("in turn")).cloned().unwrap_or_default();
    ensure!(line.contains("127.0.0.9:53") && line.contains("lab.test"), "{line}");
    // Now that is known, and fails at once.
    let at_once = || {
        ask(&place, "b.lab.test").is_ok_and(|(rcode, took)| rcode == ServFail && took < LIMIT / 20)
    };
    ensure!(eventually(LIMIT, at_once), "it goes on in circles");
    ensure!(ask(&place, "example.test")?.0 == NoError);

    // Once it asks somebody else it is asked again.
    drop(dnsmasq);
    let address = [format!("{BESIDE}:53").parse()?];
    let _server = PlainServer::start_on(&place.netns, &address, Zone::Plaintext)?;
    daemon.wait_for_log("does not ask us any more", 3 * LIMIT)?;
    ensure!(
        eventually(LIMIT, || ask(&place, "c.lab.test").is_ok_and(|(rcode, _)| rcode == NoError))
    );
    Ok(())
}
