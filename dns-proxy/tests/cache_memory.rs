//! What a full cache takes from the allocator, to the octet; alone in its process, since it counts
//! everything.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use dns_proxy::{
    cache::{Bits, Cache, Key, Limits, View},
    parts::Parts,
};

struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator, whose contract this one's callers keep.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An answer with addresses for a name of its own.
fn answer(number: u32, addresses: u8) -> (Key, Vec<u8>) {
    let label = format!("{number}");
    let name = [&[label.len() as u8][..], label.as_bytes(), b"\x07example\x04test\x00"].concat();
    let key = Key::new(View(0), &name, 1, 1, Bits::default()).expect("for keeping");
    let mut out = vec![0, 0, 0x81, 0x80, 0, 1, 0, addresses, 0, 0, 0, 0];
    out.extend_from_slice(&name);
    out.extend_from_slice(&[0, 1, 0, 1]);
    for last in 0..addresses {
        out.extend_from_slice(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04\xcb\x00\x71");
        out.push(last);
    }
    (key, out)
}

#[test]
fn a_full_cache_takes_what_it_was_given_and_a_hit_takes_nothing() {
    const SIZE: usize = 4 << 20;
    let limits = Limits {
        min_ttl: Duration::ZERO,
        max_ttl: Duration::from_secs(86_400),
        max_stale: Duration::ZERO,
    };
    let (before, now) = (TAKEN.load(Ordering::Relaxed), Instant::now());
    let mut cache = Cache::new(SIZE, limits, now);
    for number in 0..200_000 {
        let (key, answer) = answer(number, 1 + (number % 7) as u8);
        let parts = Parts::read(&answer).expect("well formed");
        cache.keep(&key, &parts, now, 0);
    }
    let taken = TAKEN.load(Ordering::Relaxed) - before;
    assert!(taken.abs_diff(SIZE) < SIZE / 100, "{taken} octets, not {SIZE}");

    let (key, _) = answer(199_999, 1);
    let before = TAKEN.load(Ordering::Relaxed);
    assert!(cache.get(&key, now).is_some());
    assert_eq!(TAKEN.load(Ordering::Relaxed), before);
}
