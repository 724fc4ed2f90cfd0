//! The octets that come out of TLS: split into messages, each of which is looked at before anybody
//! knows whether it answers something.
#![no_main]

use dns_proxy::wire::{self, MAX_NAME_LEN, Question};
use libfuzzer_sys::fuzz_target;

const QUESTION: &[u8] = b"\x07example\x04test\0\0\x01\0\x01";

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    while let Some((message, tail)) = wire::split_frame(rest) {
        assert_eq!(message.len() + 2 + tail.len(), rest.len());
        rest = tail;
        read(message);
    }
});

fn read(message: &[u8]) {
    if let Some(question) = Question::read(message) {
        assert!((17..=12 + MAX_NAME_LEN + 4).contains(&question.end));
        assert!(question.end <= message.len());
    }
    if wire::answers(message, QUESTION) {
        assert!(wire::counts(message).expect("a header")[0] <= 1);
        let _ = wire::Hop::read(message);
    }
    // Whatever the beginning: where a record ends is within the message.
    for at in 0..message.len().min(64) {
        if let Some(record) = wire::record_at(message, at) {
            assert!(record.data <= record.end && record.end <= message.len());
            for option in wire::options(&message[record.data..record.end]).flatten() {
                assert!(option.1.len() >= wire::OPTION_HEADER_LEN);
            }
        }
    }
}
