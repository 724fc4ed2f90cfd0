//! Two upstreams and three: whatever one of them does, another answers, and only as much as it must.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Close, Daemon, DotServer, Orders, Reply, eventually};

use crate::{
    client::{Burst, Udp},
    place::{LIMIT, Place},
};

const MANY: u16 = 300;
const ADDRS: [&str; 3] = ["[::1]:853", "127.0.0.2:853", "127.0.0.3:853"];
const NAMED: [&str; 3] = ["[::1]:853#dns.test", "127.0.0.2:853#dns.test", "127.0.0.3:853#dns.test"];

/// Several upstreams and a client that has been answered by the first.
struct Setting {
    _daemon: Daemon,
    servers: Vec<DotServer>,
    client: Udp,
    _place: Place,
}

impl Setting {
    fn new(count: usize) -> Result<Self> {
        let place = Place::new()?;
        let servers: Result<Vec<_>> =
            ADDRS[..count].iter().map(|addr| place.upstream_at(addr)).collect();
        let (servers, daemon) = (servers?, place.daemon(&NAMED[..count], &[])?);
        let client = place.udp()?;
        for n in 0..20 {
            client.resolve(&format!("before{n}.example.test"))?;
        }
        ensure!(servers[0].journal().queries.len() == 20, "the first is not preferred");
        Ok(Self { _daemon: daemon, servers, client, _place: place })
    }

    fn ask_many(&self, prefix: &str) -> Result<()> {
        let burst = Burst::new(prefix, MANY)?;
        for query in burst.queries() {
            self.client.send(&query)?;
        }
        burst.collect(|| self.client.receive()).map(drop)
    }

    /// How many queries the server has seen, but for what we ask it ourselves.
    fn asked(&self, index: usize) -> usize {
        let journal = self.servers[index].journal();
        journal.queries.iter().filter(|seen| !seen.name.is_empty()).count()
    }
}

/// What can happen to a server.
fn kill(server: &DotServer) -> Result<()> {
    server.refuse()?;
    server.disconnect(Close::Reset);
    Ok(())
}

fn always(reply: Reply) -> impl Fn(&DotServer) -> Result<()> {
    move |server| {
        server.order(Orders { reply, stall_handshake: true, ..Orders::default() });
        Ok(())
    }
}

fn check_answered_without(bad: usize, what: &dyn Fn(&DotServer) -> Result<()>) -> Result<()> {
    let setting = Setting::new(bad + 1)?;
    setting.servers[..bad].iter().try_for_each(what)?;
    setting.ask_many("n")?;
    setting.ask_many("m")?;
    ensure!(setting.asked(bad) >= usize::from(MANY), "the last did not answer");
    Ok(())
}

#[test]
fn many_queries_are_answered_whatever_the_others_do() -> Result<()> {
    for bad in [1, 2] {
        check_answered_without(bad, &kill).with_context(|| format!("{bad} killed"))?;
        for reply in [Reply::Silence, Reply::WrongId, Reply::WrongQuestion, Reply::Stall] {
            let context = || format!("{bad} {reply:?}");
            check_answered_without(bad, &always(reply)).with_context(context)?;
        }
    }
    Ok(())
}

/// Its answers come all the same: asking elsewhere is for the few that wait unusually long.
#[test]
fn of_a_slow_upstreams_queries_only_some_are_asked_elsewhere() -> Result<()> {
    let setting = Setting::new(2)?;
    setting.servers[0].order(Orders::delayed(Duration::from_millis(300)));
    setting.ask_many("n")?;
    let elsewhere = setting.asked(1);
    // A hundred at once and one of ten.
    ensure!((1..=135).contains(&elsewhere), "{elsewhere} of {MANY}");
    ensure!(setting.servers[0].journal().accepted <= 2, "it was taken for dead");
    Ok(())
}

#[test]
fn a_quick_upstreams_queries_are_asked_nowhere_else() -> Result<()> {
    let setting = Setting::new(2)?;
    setting.ask_many("n")?;
    let elsewhere = setting.asked(1);
    ensure!(elsewhere <= usize::from(MANY) / 10, "{elsewhere} of {MANY}");
    Ok(())
}

/// It takes connections again and answers nothing yet: that is found out without a client.
#[test]
fn an_upstream_that_is_back_is_tried_before_clients_are_sent_there() -> Result<()> {
    let setting = Setting::new(2)?;
    kill(&setting.servers[0])?;
    setting.ask_many("n")?;
    setting.servers[0].order(Orders::always(Reply::Silence));
    let before = setting.asked(0);
    setting.servers[0].listen()?;
    let mut number = 0;
    let mut ask = || {
        number += 1;
        ensure!(number < 50_000, "it is not tried");
        setting.client.resolve(&format!("m{number}.example.test"))
    };
    let tried = || setting.servers[0].journal().queries.iter().any(|seen| seen.name.is_empty());
    while !tried() {
        ask()?;
    }
    (0..100).try_for_each(|_| ask())?;
    ensure!(setting.asked(0) == before, "clients were sent there");

    setting.servers[0].order(Orders::default());
    let back = || ask().is_ok() && setting.asked(0) > before;
    ensure!(eventually(LIMIT * 2, back), "it is not asked again");
    Ok(())
}
