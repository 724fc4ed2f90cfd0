//! What a client sends: either a query that can be passed on, or an error that can be told.
#![no_main]

use dns_proxy::{
    datapath::{
        query::{MAX_QUERY_LEN, Query},
        response::{self, Failure},
    },
    upstream::ExchangeError,
    wire::{self, HEADER_LEN, Question, flag},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    match Query::parse(message) {
        Ok(query) => check_query(message, &query),
        Err(reason) => {
            if let Some(answer) = response::reject(message, reason) {
                check_answer(&message[..2], &answer);
            }
        }
    }
});

fn check_query(message: &[u8], query: &Query) {
    assert_eq!(query.id(), message[..2]);
    assert_eq!(query.question(), &message[HEADER_LEN..][..query.question().len()]);
    for passed_on in [query.to_upstream(), query.to_plaintext()] {
        assert!(passed_on.len() <= MAX_QUERY_LEN + 256, "{} octets", passed_on.len());
        assert_eq!(passed_on[..4], message[..4]);
        let question = Question::read(&passed_on).expect("a question");
        assert_eq!(&passed_on[HEADER_LEN..question.end], query.question());
        if passed_on.len() <= MAX_QUERY_LEN {
            let again = Query::parse(&passed_on).expect("a query");
            assert_eq!(again.is_intact(), query.is_intact());
        }
    }
    if !query.is_intact() {
        assert!(query.to_upstream().len().is_multiple_of(128));
    }
    for failure in [Failure::Busy, Failure::Upstream(ExchangeError::Timeout)] {
        let answer = response::fail(query, &failure);
        check_answer(&message[..2], &answer);
        assert!(answer.len() <= 512);
    }
}

fn check_answer(id: &[u8], answer: &[u8]) {
    assert_eq!(answer[..2], *id);
    assert!(answer[2] & flag::QR != 0);
    wire::Hop::read(answer).expect("an answer that can be read");
}
