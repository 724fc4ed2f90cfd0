//! The cache by its rules, with a clock that the tests move; and against a model that forgets nothing.

use std::collections::HashMap;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::wire::{flag, rcode, rr_type};

const SIZE: usize = 1 << 20;
const UNIX: u32 = 1_800_000_000;
const DAY: Duration = Duration::from_secs(86_400);
const LIMITS: Limits = Limits { min_ttl: Duration::ZERO, max_ttl: DAY, max_stale: Duration::ZERO };
const NAME: &[u8] = b"\x03www\x07example\x04test\x00";

/// A cache and the time.
struct Scene {
    cache: Cache,
    start: Instant,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: Limits) -> Self {
        let now = Instant::now();
        Self { cache: Cache::new(SIZE, limits, now), start: now, now }
    }

    /// It is so many seconds after the beginning.
    fn at(&mut self, seconds: u64) -> &mut Self {
        self.now = self.start + Duration::from_secs(seconds);
        self
    }

    fn keep(&mut self, key: &Key, answer: &[u8]) -> &mut Self {
        let parts = Parts::read(answer).expect("well formed");
        let unix = UNIX + (self.now - self.start).as_secs() as u32;
        self.cache.keep(key, &parts, self.now, unix);
        self
    }

    /// The TTLs that a client would see, and whether they are stale.
    fn ttls(&mut self, key: &Key) -> Option<(Vec<u32>, bool)> {
        let hit = self.cache.get(key, self.now)?;
        let mut message = compose(key, &hit.parts());
        hit.count_down(&mut message);
        Some((ttls(&message), hit.is_stale))
    }

    fn ttl(&mut self, key: &Key) -> Option<u32> {
        self.ttls(key).map(|(ttls, _)| ttls.into_iter().min().unwrap_or(0))
    }
}

fn key(name: &[u8], qtype: u16) -> Key {
    Key::new(View(0), name, qtype, 1, Bits::default()).expect("for keeping")
}

fn a() -> Key {
    key(NAME, rr_type::A)
}

fn record(rr_type: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let head = [&[0xc0, 12][..], &rr_type.to_be_bytes(), &[0, 1], &ttl.to_be_bytes()].concat();
    [&head, &(data.len() as u16).to_be_bytes()[..], data].concat()
}

fn address(ttl: u32) -> Vec<u8> {
    record(rr_type::A, ttl, &[203, 0, 113, 77])
}

fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
    let data = [&[0xc0, 12, 0xc0, 12][..], &[0; 16], &minimum.to_be_bytes()].concat();
    record(rr_type::SOA, ttl, &data)
}

fn rrsig(ttl: u32, original: u32, expires: u32) -> Vec<u8> {
    let data = [&[0, 1, 13, 2][..], &original.to_be_bytes(), &expires.to_be_bytes(), &[0; 40]];
    record(rr_type::RRSIG, ttl, &data.concat())
}

fn opt(options: &[u8]) -> Vec<u8> {
    let head = [0, 0, 41, 4, 0xd0, 0, 0, 0, 0];
    [&head[..], &(options.len() as u16).to_be_bytes(), options].concat()
}

/// A response to a question for [`NAME`], with sections.
fn response(qtype: u16, code: u8, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, flag::QR | flag::RD, flag::RA | code, 0, 1];
    for section in sections {
        out.extend((section.len() as u16).to_be_bytes());
    }
    out.extend_from_slice(NAME);
    out.extend(qtype.to_be_bytes());
    out.extend([0, 1]);
    sections.iter().copied().flatten().for_each(|record| out.extend_from_slice(record));
    out
}

fn positive(records: &[Vec<u8>]) -> Vec<u8> {
    response(rr_type::A, rcode::NOERROR, [records, &[], &[]])
}

fn negative(code: u8, authority: &[Vec<u8>]) -> Vec<u8> {
    response(rr_type::A, code, [&[], authority, &[]])
}

/// A message of these parts.
fn compose(key: &Key, parts: &Parts<'_>) -> Vec<u8> {
    let mut out = vec![0, 0, parts.flags[0], parts.flags[1], 0, 1];
    parts.counts.iter().for_each(|count| out.extend(count.to_be_bytes()));
    out.resize(key.records_at(), 0);
    let name = &key.bytes()[key.bytes().len() - (key.records_at() - 12 - 4)..];
    out[12..12 + name.len()].copy_from_slice(name);
    out.extend_from_slice(parts.body);
    out
}

fn ttls(message: &[u8]) -> Vec<u32> {
    let counts = wire::counts(message).expect("a header");
    let mut at = wire::Question::read(message).expect("a question").end;
    let mut next = |_| {
        let record = wire::record_at(message, at).expect("a record");
        at = record.end;
        wire::u32_at(message, record.fixed + 4).expect("a TTL")
    };
    (0..counts[1] + counts[2] + counts[3]).map(&mut next).collect()
}

#[test]
fn ttls_count_down_and_the_least_of_them_is_how_long_the_answer_is_kept() {
    let mut scene = Scene::new();
    scene.keep(&a(), &positive(&[address(300), address(60)]));
    assert_eq!(scene.ttls(&a()), Some((vec![300, 60], false)));
    assert_eq!(scene.at(59).ttls(&a()), Some((vec![241, 1], false)));
    assert_eq!(scene.at(60).ttls(&a()), None);
}

#[test]
fn the_answer_comes_back_byte_for_byte() {
    let mut scene = Scene::new();
    let answer = positive(&[address(300), rrsig(300, 300, UNIX + 9_999)]);
    scene.keep(&a(), &answer);
    let parts = scene.cache.get(&a(), scene.now).expect("kept").parts();
    let expected = Parts::read(&answer).expect("well formed");
    assert_eq!((parts.flags, parts.counts), (expected.flags, expected.counts));
    assert_eq!(parts.body, expected.body);
}

#[test]
fn the_case_of_a_name_does_not_matter_and_everything_else_does() {
    let mut scene = Scene::new();
    scene.keep(&a(), &positive(&[address(300)]));
    assert!(scene.ttl(&key(&NAME.to_ascii_uppercase(), rr_type::A)).is_some());
    let other = |view, qtype, bits| Key::new(View(view), NAME, qtype, 1, bits).expect("a key");
    let bits = Bits::default();
    for key in [
        key(&NAME[4..], rr_type::A),
        other(1, rr_type::A, bits),
        other(0, rr_type::AAAA, bits),
        other(0, rr_type::A, Bits { dnssec_ok: true, ..bits }),
        other(0, rr_type::A, Bits { checking_disabled: true, ..bits }),
        other(0, rr_type::A, Bits { authentic_data: true, ..bits }),
    ] {
        assert_eq!(scene.ttl(&key), None, "{:02x?}", key.bytes());
    }
}

#[test]
fn what_is_no_type_of_records_has_no_key() {
    for qtype in [rr_type::ANY, rr_type::AXFR, rr_type::IXFR, rr_type::TSIG, rr_type::OPT, 249] {
        assert!(Key::new(View(0), NAME, qtype, 1, Bits::default()).is_none(), "{qtype}");
    }
    assert!(Key::new(View(0), NAME, rr_type::A, 3, Bits::default()).is_none(), "CHAOS");
}

#[test]
fn negative_answers_are_kept_as_their_soa_says() {
    for code in [rcode::NXDOMAIN, rcode::NOERROR] {
        for (ttl, minimum, kept) in [(3_600, 60, 60), (60, 3_600, 60), (90_000, 90_000, 10_800)] {
            let mut scene = Scene::new();
            scene.keep(&a(), &negative(code, &[soa(ttl, minimum)]));
            let shown = ttl.min(minimum).min(86_400);
            assert_eq!(scene.ttl(&a()), Some(shown), "RFC 2308 section 5");
            assert_eq!(scene.at(kept - 1).ttl(&a()), Some(shown - kept as u32 + 1));
            assert_eq!(scene.at(kept).ttl(&a()), None);
        }
        let mut scene = Scene::new();
        assert_eq!(scene.keep(&a(), &negative(code, &[])).ttl(&a()), None, "no SOA");
        let referral = record(rr_type::NS, 300, &[0xc0, 12]);
        assert_eq!(scene.keep(&a(), &negative(code, &[referral])).ttl(&a()), None);
    }
}

#[test]
fn an_alias_that_leads_nowhere_is_negative() {
    let alias = record(rr_type::CNAME, 300, &[0xc0, 16]);
    let mut scene = Scene::new();
    scene.keep(&a(), &positive(std::slice::from_ref(&alias)));
    assert_eq!(scene.ttl(&a()), None, "no SOA");
    let nowhere = response(rr_type::A, rcode::NOERROR, [&[alias], &[soa(60, 30)], &[]]);
    assert_eq!(scene.keep(&a(), &nowhere).ttl(&a()), Some(30));
}

#[test]
fn a_ttl_with_the_top_bit_set_is_zero_and_zero_is_not_kept() {
    for ttl in [0, 1 << 31, u32::MAX] {
        let mut scene = Scene::new();
        assert_eq!(scene.keep(&a(), &positive(&[address(ttl)])).ttl(&a()), None, "{ttl}");
    }
}

#[test]
fn nothing_outlives_its_signature() {
    for (ttl, original, left, kept) in
        [(300, 300, 50, 50), (300, 40, 999, 40), (300, 999, 999, 300)]
    {
        let mut scene = Scene::new();
        scene.keep(&a(), &positive(&[address(300), rrsig(ttl, original, UNIX + left)]));
        assert!(scene.at(kept - 1).ttl(&a()).is_some());
        assert_eq!(scene.at(kept).ttl(&a()), None, "{ttl} {original} {left}");
    }
    let mut scene = Scene::new();
    scene.keep(&a(), &positive(&[address(300), rrsig(300, 300, UNIX - 1)]));
    assert_eq!(scene.ttl(&a()), None, "expired");
}

#[test]
fn floors_and_ceilings_hold() {
    let [min_ttl, max_ttl] = [10, 100].map(Duration::from_secs);
    for (ttl, kept) in [(0, 10), (5, 10), (50, 50), (500, 100)] {
        let mut scene = Scene::with(Limits { min_ttl, max_ttl, ..LIMITS });
        scene.keep(&a(), &positive(&[address(ttl)]));
        assert_eq!(scene.ttl(&a()), Some(kept));
        assert_eq!(scene.at(kept.into()).ttl(&a()), None);
    }
}

#[test]
fn what_is_for_one_client_is_not_kept() {
    let kept = |answer: &[u8]| Scene::new().keep(&a(), answer).ttl(&a()).is_some();
    let with = |additional: Vec<u8>| {
        response(rr_type::A, rcode::NOERROR, [&[address(300)], &[], &[additional]])
    };
    assert!(kept(&with(opt(&[]))));
    let subnet = |scope| opt(&[0, 8, 0, 7, 0, 1, 24, scope, 192, 0, 2]);
    assert!(kept(&with(subnet(0))) && !kept(&with(subnet(24))), "RFC 7871");
    assert!(!kept(&with(opt(&[0, 8, 0, 2, 0, 1]))) && !kept(&with(opt(&[0, 8, 0, 9]))));
    assert!(!kept(&with(record(rr_type::TSIG, 0, b"x"))) && !kept(&with(record(24, 0, b"x"))));
    let mut truncated = positive(&[address(300)]);
    truncated[2] |= flag::TC;
    assert!(!kept(&truncated));
    for code in [rcode::FORMERR, rcode::NOTIMP, 9] {
        assert!(!kept(&response(rr_type::A, code, [&[address(300)], &[], &[]])), "{code}");
    }
}

#[test]
fn failures_are_told_again_for_longer_and_longer() {
    let mut scene = Scene::new();
    let failure = negative(rcode::SERVFAIL, &[]);
    let mut now = 0;
    for kept in [1, 2, 4, 8, 16, 30, 30] {
        scene.at(now).keep(&a(), &failure);
        assert!(scene.at(now + kept - 1).ttl(&a()).is_some(), "{kept}");
        assert!(scene.at(now + kept).ttl(&a()).is_none(), "{kept}");
        now += kept;
    }
    scene.at(now + 300).keep(&a(), &failure);
    assert!(scene.at(now + 301).ttl(&a()).is_none(), "it begins anew");
    scene.keep(&a(), &positive(&[address(9)])).keep(&a(), &failure);
    assert_eq!(scene.ttl(&a()), Some(9), "what is known is not forgotten for it");
}

#[test]
fn stale_answers_live_on_and_are_rechecked_at_intervals() {
    let mut scene = Scene::with(Limits { max_stale: DAY, ..LIMITS });
    let failure = negative(rcode::SERVFAIL, &[]);
    scene.keep(&a(), &positive(&[address(60)]));
    assert_eq!(scene.at(60).ttls(&a()), Some((vec![STALE_TTL], true)));
    let due = |scene: &mut Scene| scene.cache.get(&a(), scene.now).expect("stale").is_due;
    assert!(due(&mut scene));
    scene.keep(&a(), &failure);
    assert!(!due(&mut scene) && !due(scene.at(89)) && due(scene.at(90)), "RFC 8767 section 5");
    scene.cache.failed(&a(), scene.now);
    assert!(!due(scene.at(119)) && due(scene.at(120)));
    assert!(scene.at(60 + 86_399).ttl(&a()).is_some());
    assert_eq!(scene.at(60 + 86_400).ttl(&a()), None);
}

#[test]
fn stale_data_do_not_override_what_is_true_now() {
    let stale = || {
        let mut scene = Scene::with(Limits { max_stale: DAY, ..LIMITS });
        scene.keep(&a(), &positive(&[address(60)])).at(100);
        scene
    };
    let mut scene = stale();
    scene.keep(&a(), &negative(rcode::NXDOMAIN, &[soa(60, 60)]));
    let hit = scene.cache.get(&a(), scene.now).expect("fresh");
    assert_eq!((hit.is_stale, hit.parts().flags[1] & flag::RCODE), (false, rcode::NXDOMAIN));
    assert_eq!(stale().keep(&a(), &negative(rcode::NXDOMAIN, &[])).ttl(&a()), None);
    assert_eq!(stale().keep(&a(), &positive(&[address(0)])).ttl(&a()), None);
}

#[test]
fn popular_answers_are_due_in_the_last_part_of_their_life() {
    let mut scene = Scene::new();
    scene.keep(&a(), &positive(&[address(100)]));
    let due = |scene: &mut Scene| scene.cache.get(&a(), scene.now).expect("kept").is_due;
    assert!(!due(scene.at(90)), "asked for the first time");
    assert!(due(scene.at(90)) && due(scene.at(99)));
    scene.keep(&a(), &positive(&[address(100)]));
    assert!(!due(scene.at(188)), "renewed");
}

/// A name of its own for each number.
fn name(number: u32) -> Vec<u8> {
    let label = format!("name-{number}");
    [&[label.len() as u8][..], label.as_bytes(), b"\x07example\x04test\x00"].concat()
}

#[test]
fn a_flood_of_names_leaves_those_that_are_asked_for_again() {
    let mut scene = Scene::new();
    let answer = positive(&[address(3_600)]);
    for round in 0..4 {
        for number in 0..500 {
            let key = key(&name(number), rr_type::A);
            if scene.ttl(&key).is_none() {
                assert_eq!(round, 0);
                scene.keep(&key, &answer);
            }
        }
    }
    for number in 500..100_000 {
        scene.keep(&key(&name(number), rr_type::A), &answer);
    }
    let left = (0..500).filter(|n| scene.ttl(&key(&name(*n), rr_type::A)).is_some()).count();
    assert_eq!(left, 500);
}

#[test]
fn an_answer_of_66_octets_takes_less_than_200() {
    let mut scene = Scene::new();
    let name = |number: u32| {
        let label = format!("{number:027}");
        [&[27][..], label.as_bytes(), b"\x04test\x00"].concat()
    };
    let whole = 12 + name(0).len() + 4 + address(0).len();
    assert_eq!(whole, 66);
    for number in 0..50_000 {
        scene.keep(&key(&name(number), rr_type::A), &positive(&[address(3_600)]));
        // Twice, so that both queues fill.
        scene.ttl(&key(&name(number), rr_type::A));
        scene.ttl(&key(&name(number), rr_type::A));
    }
    let each = SIZE / scene.cache.count();
    assert!(each < 130, "{each} octets");
}

/// What may be found is what was kept last and has not expired; but not all that was kept is found.
#[test]
fn it_never_finds_what_a_model_does_not_know() {
    let mut rng = SmallRng::seed_from_u64(7);
    for size in [1 << 14, 1 << 15, 1 << 20] {
        let mut scene = Scene::new();
        scene.cache = Cache::new(size, LIMITS, scene.start);
        let mut model: HashMap<u32, (Vec<u8>, u64, u32)> = HashMap::new();
        let (mut now, mut found, mut lost) = (0, 0, 0);
        for step in 0..60_000_u32 {
            now += u64::from(rng.random_ratio(1, 50));
            scene.at(now);
            // Some names more often than others.
            let number = rng.random_range(0..400_u32) * rng.random_range(0..400) / 400;
            let key = key(&name(number), rr_type::A);
            if rng.random_ratio(1, 3) {
                let ttl = rng.random_range(0..200);
                let records = rng.random_range(1..6);
                let address = record(rr_type::A, ttl, &step.to_be_bytes());
                let answer = positive(&vec![address; records]);
                scene.keep(&key, &answer);
                let body = Parts::read(&answer).expect("well formed").body.to_vec();
                model.insert(number, (body, now, ttl));
                continue;
            }
            let fresh = model.get(&number).filter(|(_, at, ttl)| now < at + u64::from(*ttl));
            match (scene.cache.get(&key, scene.now), fresh) {
                (Some(hit), Some((body, at, ttl))) => {
                    assert_eq!(hit.parts().body, body);
                    let mut message = compose(&key, &hit.parts());
                    hit.count_down(&mut message);
                    assert!(ttls(&message).iter().all(|left| *left == ttl - (now - at) as u32));
                    found += 1;
                }
                (Some(_), None) => unreachable!("expired, or never kept"),
                (None, Some(_)) => lost += 1,
                (None, None) => {}
            }
        }
        assert!(found > 1_000, "{found} of {size}");
        assert!(size < 1 << 20 || lost * 100 < found, "{lost} of {found}");
    }
}
