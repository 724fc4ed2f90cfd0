//! What an upstream answers to a query, both from the input: what is passed on can be read, answers
//! what was asked, and fits.
#![no_main]

use dns_proxy::{
    datapath::{
        query::Query,
        response::{self, Room},
    },
    wire::{self, HEADER_LEN, Question, rr_type},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((message, answer)) = wire::split_frame(input) else {
        return;
    };
    let Ok(query) = Query::parse(message) else {
        return;
    };
    // The worker asks this before it lets an answer through.
    if !wire::answers(answer, query.question()) || wire::Hop::read(answer).is_none() {
        return;
    }
    for (room, limit) in [
        (Room::Stream, wire::MAX_MESSAGE_LEN),
        (Room::Datagram { path: 1232 }, 1232),
        (Room::Datagram { path: 512 }, 512),
    ] {
        if let Ok(relayed) = response::relay(&query, answer, room) {
            check(&query, &relayed, limit);
        }
    }
});

fn check(query: &Query, relayed: &[u8], limit: usize) {
    assert!(relayed.len() <= limit, "{} octets", relayed.len());
    assert_eq!(relayed[..2], query.id());
    let question = Question::read(relayed).expect("a question");
    assert_eq!(&relayed[HEADER_LEN..question.end], query.question());
    wire::Hop::read(relayed).expect("an answer that can be read");
    if !query.is_intact() {
        assert_eq!(options(relayed), usize::from(query.edns().is_some()));
    }
}

/// How many OPT records there are in the additional section.
fn options(message: &[u8]) -> usize {
    let [_, answers, authority, additional] = wire::counts(message).expect("a header");
    let before = u32::from(answers) + u32::from(authority);
    let mut at = Question::read(message).expect("a question").end;
    let mut found = 0;
    for index in 0..before + u32::from(additional) {
        let record = wire::record_at(message, at).expect("a record");
        found += usize::from(record.rr_type == rr_type::OPT && index >= before);
        at = record.end;
    }
    found
}
