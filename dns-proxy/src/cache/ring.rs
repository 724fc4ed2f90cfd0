//! A queue of byte records of any length, in one piece of memory.
//!
//! A record begins with two words of four octets: its tag, which is 0 for one that nobody wants any
//! more, and its length.

/// What lengths and places are multiples of.
pub(super) const UNIT: usize = 8;
const TAG: usize = 0;
const LENGTH: usize = 4;

/// The queue. Memory that was never written to is not touched either.
pub(super) struct Ring {
    bytes: Vec<u8>,
    /// Where the next record goes.
    head: usize,
    /// Where the oldest is.
    tail: usize,
    used: usize,
}

impl Ring {
    /// An empty one of so many octets, rounded down.
    pub(super) fn new(size: usize) -> Self {
        Self { bytes: vec![0; size - size % UNIT], head: 0, tail: 0, used: 0 }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Octets that records take.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Whether a record of so many octets finds room now.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.used + self.gap(len) + len <= self.bytes.len()
    }

    /// Queues a record, for which there must be room; says where it is.
    pub(super) fn push(&mut self, record: &[u8]) -> usize {
        let at = self.claim(record.len());
        self.bytes[at..at + record.len()].copy_from_slice(record);
        at
    }

    /// Queues anew what has just been taken from the queue, if there is room; says where it is then.
    pub(super) fn push_again(&mut self, at: usize, len: usize) -> Option<usize> {
        self.has_room(len).then(|| {
            let to = self.claim(len);
            self.bytes.copy_within(at..at + len, to);
            to
        })
    }

    /// Takes the oldest record out; its place and length. Its octets stay until the next push.
    pub(super) fn pop(&mut self) -> Option<(usize, usize)> {
        if self.used == 0 {
            return None;
        }
        let (at, len) = (self.tail, self.word(self.tail + LENGTH) as usize);
        self.used -= len;
        self.tail = (at + len) % self.bytes.len();
        Some((at, len))
    }

    /// The record's tag.
    pub(super) fn tag(&self, at: usize) -> u32 {
        self.word(at + TAG)
    }

    /// Nobody wants this record any more.
    pub(super) fn discard(&mut self, at: usize) {
        self.bytes[at + TAG..][..4].fill(0);
    }

    pub(super) fn record(&self, at: usize) -> &[u8] {
        let len = self.word(at + LENGTH) as usize;
        &self.bytes[at..at + len]
    }

    pub(super) fn record_mut(&mut self, at: usize) -> &mut [u8] {
        let len = self.word(at + LENGTH) as usize;
        &mut self.bytes[at..at + len]
    }

    /// Octets at the end of the memory that such a record would leave unused.
    fn gap(&self, len: usize) -> usize {
        let left = self.bytes.len() - self.head;
        if left < len { left } else { 0 }
    }

    fn claim(&mut self, len: usize) -> usize {
        let gap = self.gap(len);
        if gap > 0 {
            self.bytes[self.head + TAG..][..4].fill(0);
            self.bytes[self.head + LENGTH..][..4].copy_from_slice(&(gap as u32).to_le_bytes());
            self.head = 0;
        }
        let at = self.head;
        self.used += gap + len;
        self.head = (at + len) % self.bytes.len();
        at
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([
            self.bytes[at],
            self.bytes[at + 1],
            self.bytes[at + 2],
            self.bytes[at + 3],
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tag: u32, len: usize) -> Vec<u8> {
        let mut record = vec![tag as u8; len];
        record[..4].copy_from_slice(&tag.to_le_bytes());
        record[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        record
    }

    #[test]
    fn records_come_out_in_the_order_in_which_they_went_in() {
        let mut ring = Ring::new(256);
        let (mut next, mut oldest) = (1_u32, 1);
        for round in 0..10_000 {
            let len = 16 + round * 7 % 11 * UNIT;
            while !ring.has_room(len) {
                let (at, _) = ring.pop().expect("it is full");
                if ring.tag(at) != 0 {
                    assert_eq!(ring.tag(at), oldest);
                    assert!(ring.record(at)[UNIT..].iter().all(|octet| *octet == oldest as u8));
                    oldest += 1;
                }
            }
            ring.push(&record(next, len));
            next += 1;
        }
        assert!(oldest > 9_000);
    }
}
