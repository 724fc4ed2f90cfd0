//! What a [`DotServer`](super::DotServer) can be told to do, good or bad, while it runs.

use std::time::Duration;

/// How the server behaves from now on. The default is a faithful, quick one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// How long every answer takes. A name's first label `slow-<ms>` adds to it.
    pub delay: Duration,
    /// Gather this many answers on a connection, then send them in reverse order; what does not
    /// reach the number goes, reversed, after [`HOLD_LIMIT`]. 0 and 1 keep the order.
    pub hold: usize,
    /// Close the connection after so many answers.
    pub close_after: Option<(usize, Close)>,
    /// What comes for an answer.
    pub reply: Reply,
    /// Names that are treated otherwise.
    pub except: Vec<(String, Reply)>,
    /// Accept connections and never say a word of TLS.
    pub stall_handshake: bool,
    /// How long the server's first word of TLS takes.
    pub delay_handshake: Duration,
    /// Read nothing after the handshake, so that what is sent piles up.
    pub deaf: bool,
    /// Connections from this one on, counted from 0, get faithful answers whatever `reply` and `deaf`
    /// say.
    pub faithful_from: Option<usize>,
}

/// How long held answers wait for more.
pub const HOLD_LIMIT: Duration = Duration::from_millis(200);

/// What comes for an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reply {
    /// What the zone says.
    #[default]
    Faithful,
    /// Nothing.
    Silence,
    /// A well framed message of noise.
    Junk,
    /// The right answer with another transaction ID.
    WrongId,
    /// The answer to another name, with the right transaction ID.
    WrongQuestion,
    /// Half of the answer, and nothing more on this connection.
    Stall,
    /// The right answer, whose length says that it ends earlier: what follows begins in its midst.
    Misframed,
    /// The connection's end.
    End(Close),
    /// What this function makes of the query.
    Crafted(Craft),
}

/// Makes an answer from a query.
#[derive(Clone, Copy, Debug)]
pub struct Craft(pub(super) fn(&[u8]) -> Vec<u8>);

impl PartialEq for Craft {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::fn_addr_eq(self.0, other.0)
    }
}

impl Eq for Craft {}

impl Reply {
    /// What this function makes of the query.
    pub const fn crafted(make: fn(&[u8]) -> Vec<u8>) -> Self {
        Self::Crafted(Craft(make))
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// With close_notify and FIN, as it should.
    Orderly,
    /// With a FIN only, like a crashed process.
    Abrupt,
    /// With an RST, like a rebooted machine or a firewall.
    Reset,
    /// Our direction only: close_notify and FIN, and queries are still read.
    Half,
}

impl Orders {
    /// Faithful answers that take some time.
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// The same misbehaviour for every query.
    pub fn always(reply: Reply) -> Self {
        Self { reply, ..Self::default() }
    }

    /// Connections end after some answers.
    pub fn closing_after(answers: usize, close: Close) -> Self {
        Self { close_after: Some((answers, close)), ..Self::default() }
    }

    /// Misbehaves for one name.
    pub fn except(mut self, name: &str, reply: Reply) -> Self {
        self.except.push((name.to_owned(), reply));
        self
    }

    /// Whether this connection, counted from 0, is a faithful one among others.
    pub(super) fn is_faithful(&self, connection: usize) -> bool {
        self.faithful_from.is_some_and(|from| connection >= from)
    }

    /// What a query for this name gets, and when.
    pub(super) fn for_name(&self, name: &str) -> (Reply, Duration) {
        let exception = self.except.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        let slow = name.split('.').next().and_then(|label| label.strip_prefix("slow-"));
        let slow =
            slow.and_then(|ms| ms.parse().ok()).map_or(Duration::ZERO, Duration::from_millis);
        (exception.map_or(self.reply, |(_, reply)| *reply), self.delay + slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_slow_and_can_be_an_exception() {
        let orders = Orders::delayed(Duration::from_millis(5)).except("a.test", Reply::Silence);
        let ms = Duration::from_millis;
        assert_eq!(orders.for_name("slow-20.example.test"), (Reply::Faithful, ms(25)));
        assert_eq!(orders.for_name("A.test"), (Reply::Silence, ms(5)));
        assert_eq!(orders.for_name("slow-x.test"), (Reply::Faithful, ms(5)));
    }
}
