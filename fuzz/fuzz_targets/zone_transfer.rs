//! What a nameserver sends for a zone: messages until it has ended, which is found out from nothing
//! but their records. The first message of the input is the query.
#![no_main]

use dns_proxy::{datapath::transfer::Progress, wire};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let Some((query, mut rest)) = wire::split_frame(stream) else {
        return;
    };
    let mut progress = Progress::of(query);
    while let Some((message, tail)) = wire::split_frame(rest) {
        rest = tail;
        if progress.follow(message).is_none() || progress.has_ended() {
            return;
        }
        let [_, answers, ..] = wire::counts(message).expect("it was followed");
        assert!(answers > 0, "a message without records does not end the transfer");
    }
});
