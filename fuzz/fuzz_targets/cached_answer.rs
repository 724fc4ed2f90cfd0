//! What an upstream answers, kept: what is given later can be read and is no fresher than it was.
#![no_main]

use std::time::{Duration, Instant};

use dns_proxy::{
    cache::{Cache, Key, Limits, View},
    datapath::query::Query,
    parts::Parts,
    wire::{self, HEADER_LEN},
};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    min_ttl: Duration::ZERO,
    max_ttl: Duration::from_secs(86_400),
    max_stale: Duration::from_secs(86_400),
};

fuzz_target!(|input: &[u8]| {
    let Some((message, answer)) = wire::split_frame(input) else {
        return;
    };
    let Ok(query) = Query::parse(message) else {
        return;
    };
    let (asked, Some(parts)) = (query.asked(), Parts::read(answer)) else {
        return;
    };
    let Some(bits) = query.bits() else {
        return;
    };
    let key = Key::new(View(0), asked.name(), asked.qtype(), asked.qclass(), bits);
    let (Some(key), true) = (key, wire::answers(answer, query.question())) else {
        return;
    };
    let begin = Instant::now();
    let mut cache = Cache::new(1 << 20, LIMITS, begin);
    cache.keep(&key, &parts, begin, 1_700_000_000);
    for later in [0, 1, 60, 86_399, 200_000] {
        let Some(hit) = cache.get(&key, begin + Duration::from_secs(later)) else {
            continue;
        };
        let parts = hit.parts();
        let mut message = [&answer[..HEADER_LEN], query.question(), parts.body].concat();
        message[4..6].copy_from_slice(&[0, 1]);
        for (at, count) in parts.counts.iter().enumerate() {
            message[6 + 2 * at..][..2].copy_from_slice(&count.to_be_bytes());
        }
        let before = message.clone();
        hit.count_down(&mut message);
        wire::Hop::read(&message).expect("an answer that can be read");
        check_ttls(&before, &message, hit.is_stale);
    }
});

fn check_ttls(before: &[u8], after: &[u8], is_stale: bool) {
    let [_, sections @ ..] = wire::counts(before).expect("a header");
    let mut at = wire::Question::read(before).expect("a question").end;
    for _ in 0..sections.iter().map(|count| u32::from(*count)).sum::<u32>() {
        let record = wire::record_at(before, at).expect("a record");
        let same = |from: usize, to: usize| before[from..to] == after[from..to];
        assert!(same(record.start, record.fixed + 4) && same(record.fixed + 8, record.end));
        let ttl = |message| wire::u32_at(message, record.fixed + 4).expect("a TTL");
        assert!(is_stale || ttl(after) <= ttl(before));
        at = record.end;
    }
}
