//! Each fault that can be ordered is seen by a client as what its name says.

use crate::client::{Client, NAME, config};
use anyhow::{Result, ensure};
use dns_proxy_tests::dot_server::HOLD_LIMIT;
use dns_proxy_tests::wire::Answer;
use dns_proxy_tests::{
    Close, DotServer, Netns, Orders, Pki, Reply, Zone, eventually, expected_a, require_root_and_bpf,
};
use rustls::ClientConfig;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(5);

/// A server on loopback in a namespace of its own.
struct Setting {
    server: DotServer,
    config: Arc<ClientConfig>,
    address: SocketAddr,
    netns: Netns,
}

impl Setting {
    fn new(orders: Orders) -> Result<Self> {
        require_root_and_bpf();
        let (netns, pki, address) = (Netns::new()?, Pki::new()?, "127.0.0.1:853".parse()?);
        let server = DotServer::start(&netns, &[address], &pki.server(&[NAME])?)?;
        server.order(orders);
        Ok(Self { server, config: config(&pki)?, address, netns })
    }

    fn connect(&self) -> Result<Client> {
        Client::connect(&self.netns, self.address, &self.config)
    }
}

/// The address that comes for a name; an error if the answer is not to the query.
fn resolve(client: &mut Client, name: &str) -> Result<Vec<IpAddr>> {
    let query = client.send(1, name)?;
    Ok(Answer::to(&query, &client.receive()?)?.addresses)
}

fn check_wrong(reply: Reply, complaint: &str) -> Result<()> {
    let setting = Setting::new(Orders::always(reply))?;
    let mut client = setting.connect()?;
    let error = resolve(&mut client, "www.example.test").expect_err("a wrong answer");
    ensure!(format!("{error:#}").contains(complaint), "{error:#}");
    Ok(())
}

#[track_caller]
fn check_end(close: Close, expected: Option<ErrorKind>) -> Result<()> {
    let setting = Setting::new(Orders::closing_after(2, close))?;
    let mut client = setting.connect()?;
    resolve(&mut client, "a.example.test")?;
    resolve(&mut client, "b.example.test")?;
    let (rest, end) = client.read_to_end();
    assert_eq!(rest, b"");
    assert_eq!(end.err().map(|error| error.kind()), expected);
    if close == Close::Half {
        client.send(9, "c.example.test")?;
        assert!(eventually(LIMIT, || setting.server.journal().queries.len() == 3));
    } else {
        assert!(eventually(LIMIT, || setting.server.journal().open == 0));
    }
    Ok(())
}

#[test]
fn a_faithful_server_answers_each_name_with_its_address() -> Result<()> {
    let setting = Setting::new(Orders::default())?;
    let mut client = setting.connect()?;
    for name in ["a.example.test", "b.example.test"] {
        assert_eq!(resolve(&mut client, name)?, [expected_a(name)]);
    }
    assert_eq!(resolve(&mut client, "example.test")?, [Zone::Encrypted.a()]);
    Ok(())
}

#[test]
fn a_delay_delays_and_slow_names_do_not_hold_up_others() -> Result<()> {
    let setting = Setting::new(Orders::delayed(Duration::from_millis(30)))?;
    let mut client = setting.connect()?;
    let started = Instant::now();
    let slow = client.send(1, "slow-100.example.test")?;
    let quick = client.send(2, "quick.example.test")?;
    assert!(Answer::to(&quick, &client.receive()?).is_ok());
    assert!((30..100).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(Answer::to(&slow, &client.receive()?).is_ok());
    assert!(started.elapsed().as_millis() >= 130);
    assert_eq!(setting.server.journal().max_in_flight, 2);
    Ok(())
}

#[test]
fn held_answers_come_in_reverse_and_are_not_held_for_ever() -> Result<()> {
    let setting = Setting::new(Orders { hold: 3, ..Orders::default() })?;
    let mut client = setting.connect()?;
    for id in 0..4 {
        client.send(id, "www.example.test")?;
    }
    let started = Instant::now();
    for id in [2, 1, 0, 3] {
        assert_eq!(client.receive()?[1], id);
    }
    assert!(started.elapsed() >= HOLD_LIMIT / 2);
    Ok(())
}

#[test]
fn a_connection_ends_in_each_ordered_way_after_as_many_answers() -> Result<()> {
    check_end(Close::Orderly, None)?;
    check_end(Close::Abrupt, Some(ErrorKind::UnexpectedEof))?;
    check_end(Close::Reset, Some(ErrorKind::ConnectionReset))?;
    check_end(Close::Half, None)
}

#[test]
fn open_connections_can_be_ended_at_once() -> Result<()> {
    let setting = Setting::new(Orders::default())?;
    let mut client = setting.connect()?;
    resolve(&mut client, "example.test")?;
    setting.server.disconnect(Close::Reset);
    let (_, end) = client.read_to_end();
    assert_eq!(end.expect_err("reset").kind(), ErrorKind::ConnectionReset);
    Ok(())
}

#[test]
fn wrong_answers_are_wrong_in_the_ordered_way() -> Result<()> {
    check_wrong(Reply::WrongId, "another ID")?;
    check_wrong(Reply::WrongQuestion, "another question")?;
    check_wrong(Reply::Junk, "the answer")
}

#[test]
fn a_silent_server_hears_and_says_nothing_and_can_be_silent_for_one_name() -> Result<()> {
    let setting = Setting::new(Orders::default().except("Quiet.example.test", Reply::Silence))?;
    let mut client = setting.connect()?;
    resolve(&mut client, "example.test")?;
    client.send(1, "quiet.example.test")?;
    assert_eq!(client.receive().expect_err("silence").kind(), ErrorKind::WouldBlock);
    let journal = setting.server.journal();
    assert_eq!((journal.queries.len(), journal.in_flight), (2, 1));
    Ok(())
}

#[test]
fn a_stalling_server_sends_half_an_answer_and_stays_open() -> Result<()> {
    let setting = Setting::new(Orders::always(Reply::Stall))?;
    let mut client = setting.connect()?;
    client.send(1, "example.test")?;
    let (bytes, end) = client.read_to_end();
    assert_eq!(end.expect_err("silence").kind(), ErrorKind::WouldBlock);
    assert!((3..40).contains(&bytes.len()), "{bytes:?}");
    Ok(())
}

#[test]
fn a_server_can_stall_the_handshake() -> Result<()> {
    let setting = Setting::new(Orders { stall_handshake: true, ..Orders::default() })?;
    assert!(setting.connect().is_err());
    assert_eq!(
        (setting.server.journal().accepted, setting.server.journal().handshakes.len()),
        (1, 0)
    );
    Ok(())
}

#[test]
fn a_server_that_refuses_comes_back_and_open_connections_go_on() -> Result<()> {
    let setting = Setting::new(Orders::default())?;
    let mut open = setting.connect()?;
    resolve(&mut open, "a.example.test")?;
    setting.server.refuse()?;
    let refused = setting.netns.run(|| TcpStream::connect(setting.address))?;
    assert_eq!(refused.expect_err("refused").kind(), ErrorKind::ConnectionRefused);
    resolve(&mut open, "b.example.test")?;
    setting.server.listen()?;
    resolve(&mut setting.connect()?, "c.example.test")?;
    assert_eq!(setting.server.journal().accepted, 2);
    Ok(())
}
