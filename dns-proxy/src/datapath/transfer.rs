//! Zone transfers (RFC 5936, RFC 1995): an answer of many messages, passed on as they come.
//!
//! They end where the zone's SOA record comes for the last time; nothing else says so.

use super::{query::Query, response::Failure};
use crate::{
    upstream::Transfer,
    wire::{self, HEADER_LEN, Question, flag, rcode, rr_type},
};

/// The messages behind the first one.
pub struct Rest {
    transfer: Transfer,
    progress: Progress,
    id: [u8; 2],
}

impl Rest {
    /// The first message and, if it is not all, the rest.
    ///
    /// # Errors
    /// The nameserver closes the connection, is silent, or sends something else.
    pub(super) async fn start(
        query: &Query,
        transfer: Transfer,
    ) -> Result<(Vec<u8>, Option<Self>), Failure> {
        let progress = Progress::of(&query.to_plaintext());
        let mut rest = Self { transfer, progress, id: query.id() };
        let first = rest.read().await?;
        let more = !rest.progress.has_ended;
        Ok((first, more.then_some(rest)))
    }

    /// The next message; `None` if there is none, or none comes.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        if self.progress.has_ended {
            return None;
        }
        self.read().await.ok()
    }

    async fn read(&mut self) -> Result<Vec<u8>, Failure> {
        let mut message = self.transfer.next().await?;
        self.progress.follow(&message).ok_or(Failure::BadAnswer)?;
        message[..2].copy_from_slice(&self.id);
        Ok(message)
    }
}

/// How far a transfer has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// The serial that the client of an incremental transfer has.
    asked: Option<u32>,
    /// The serial of the zone, from the first record.
    serial: Option<u32>,
    records: usize,
    /// Differences, rather than the whole zone: the second record is an SOA too.
    incremental: bool,
    /// How often the SOA with the zone's serial has come since the first time.
    again: usize,
    has_ended: bool,
}

impl Progress {
    /// Nothing has come for this query.
    pub fn of(query: &[u8]) -> Self {
        let question = Question::read(query);
        let incremental = question.filter(|question| question.qtype == rr_type::IXFR);
        let asked = incremental.and_then(|question| {
            wire::record_at(query, question.end).and_then(|record| serial(query, &record))
        });
        Self { asked, ..Self::default() }
    }

    /// Whether nothing more will come.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes note of a message; `None` if it is no answer.
    pub fn follow(&mut self, message: &[u8]) -> Option<()> {
        let [questions, answers, ..] = wire::counts(message)?;
        let mut pos = match questions {
            0 => HEADER_LEN, // RFC 5936 section 2.2.1
            _ => Question::read(message)?.end,
        };
        for _ in 0..answers {
            let record = wire::record_at(message, pos)?;
            let serial = serial(message, &record);
            match self.records {
                0 => self.serial = serial,
                1 => self.incremental = serial.is_some() && serial != self.serial,
                _ => {}
            }
            if self.records > 0 && serial.is_some() && serial == self.serial {
                self.again += 1;
            }
            self.records += 1;
            pos = record.end;
        }
        // A lone SOA that is not newer than the client's: nothing has changed (RFC 1995 section 2).
        let unchanged = self.records == 1
            && self.asked.zip(self.serial).is_some_and(|(has, is)| is_not_newer(is, has));
        // The last sequence of additions begins with the zone's SOA too.
        let complete = self.again == if self.incremental { 2 } else { 1 };
        let failed = message[2] & flag::QR == 0
            || message[3] & flag::RCODE != rcode::NOERROR
            || answers == 0
            || self.serial.is_none();
        self.has_ended = unchanged || complete || failed;
        Some(())
    }
}

/// The serial of an SOA record (RFC 1035 section 3.3.13).
fn serial(message: &[u8], record: &wire::Record) -> Option<u32> {
    if record.rr_type != rr_type::SOA {
        return None;
    }
    let at = wire::skip_name(message, wire::skip_name(message, record.data)?)?;
    message.get(at..at + 4)?.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}

/// In serial number arithmetic (RFC 1982 section 3.2).
fn is_not_newer(serial: u32, than: u32) -> bool {
    than.wrapping_sub(serial) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\x04zone\x00\x00\xfc\x00\x01";
    const OTHER: &[u8] = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xcb\x00\x71\x4d";

    fn soa(serial: u8) -> Vec<u8> {
        let mut soa = b"\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x3c\x00\x18\xc0\x0c\xc0\x0c".to_vec();
        soa.extend([[0, 0, 0, serial], [0; 4], [0; 4], [0; 4], [0; 4]].concat());
        soa
    }

    fn message(records: &[&[u8]]) -> Vec<u8> {
        let counts = [0x12, 0x34, 0x84, 0, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
        [&counts, QUESTION, &records.concat()].concat()
    }

    /// An incremental query of a client that has serial 7.
    fn ixfr() -> Vec<u8> {
        let mut query = message(&[&soa(7)]);
        query[7] = 0;
        query[9] = 1;
        query[HEADER_LEN + QUESTION.len() - 3] = rr_type::IXFR as u8;
        query
    }

    /// After which of the messages the transfer has ended.
    fn ends(query: &[u8], messages: &[Vec<u8>]) -> Option<usize> {
        let mut progress = Progress::of(query);
        messages.iter().position(|message| {
            progress.follow(message).expect("well formed");
            progress.has_ended
        })
    }

    #[test]
    fn a_whole_zone_ends_with_the_record_that_it_begins_with() {
        let axfr = message(&[]);
        let (nine, other) = (&soa(9)[..], OTHER);
        assert_eq!(ends(&axfr, &[message(&[nine, other, nine])]), Some(0));
        let in_three = [message(&[nine]), message(&[other, other]), message(&[other, nine])];
        assert_eq!(ends(&axfr, &in_three), Some(2));
        assert_eq!(ends(&ixfr(), &in_three), Some(2), "a server may send the whole zone");
        assert_eq!(ends(&axfr, &in_three[..2]), None);
        assert_eq!(ends(&axfr, &[message(&[nine, nine])]), Some(0), "an empty zone");
    }

    #[test]
    fn differences_end_with_the_third_record_of_the_new_serial() {
        let (seven, eight, nine, other) = (&soa(7)[..], &soa(8)[..], &soa(9)[..], OTHER);
        let differences = [
            message(&[nine, seven, other, eight, other]),
            message(&[eight, other, nine, other]),
            message(&[nine]),
        ];
        assert_eq!(ends(&ixfr(), &differences), Some(2));
    }

    #[test]
    fn a_zone_that_has_not_changed_is_one_record() {
        for serial in [6, 7] {
            assert_eq!(ends(&ixfr(), &[message(&[&soa(serial)])]), Some(0));
        }
        assert_eq!(ends(&ixfr(), &[message(&[&soa(8)])]), None);
    }

    #[test]
    fn errors_end_it() {
        let mut refused = message(&[]);
        refused[3] |= rcode::REFUSED;
        assert_eq!(ends(&message(&[]), &[refused]), Some(0));
        assert_eq!(ends(&message(&[]), &[message(&[OTHER, OTHER])]), Some(0), "no SOA");
        assert_eq!(Progress::default().follow(b"short"), None);
        assert_eq!(Progress::default().follow(&message(&[&OTHER[..9]])), None);
    }
}
