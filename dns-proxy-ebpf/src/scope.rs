//! Is a cgroup selected?

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_skb_ancestor_cgroup_id,
};
use dns_proxy_common::{Counter, MAX_CGROUP_DEPTH, Policy};

use crate::maps::SCOPE;

/// Judges the current task's cgroup.
#[inline(always)]
pub(crate) fn of_task() -> Result<(), Counter> {
    // Most who ask are in a cgroup that is named itself, and need no walk to it.
    // SAFETY: the helper takes nothing (4.18); the value is one aligned word, read once.
    if unsafe { SCOPE.get(bpf_get_current_cgroup_id()) } == Some(&(Policy::SelectAll as u32)) {
        return Ok(());
    }
    // SAFETY: the helper takes any level (5.7) and answers 0 below the task's own.
    judge(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// Whether a cgroup of which that was said is selected, or may be: nobody has seen it yet.
#[inline(always)]
pub(crate) fn may_be_selected(judged: Result<(), Counter>) -> bool {
    matches!(judged, Ok(()) | Err(Counter::Undecided))
}

/// Judges the cgroup in which a packet's socket was created.
#[inline(always)]
pub(crate) fn of_packet(skb: *mut aya_ebpf::bindings::__sk_buff) -> Result<(), Counter> {
    // SAFETY: the helper takes the program's own context and any level (4.19), and answers 0 below
    // the socket's own, or if there is no socket.
    judge(|level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) })
}

/// Walks from the root of cgroup v2 down to the cgroup itself: it is selected if one on the way is,
/// and none is excluded. Whole subtrees are judged here, so that a cgroup made a moment ago needs
/// no word from the daemon, unless its name decides.
#[inline(always)]
fn judge(ancestor: impl Fn(i32) -> u64) -> Result<(), Counter> {
    let (mut selected, mut undecided, mut open) = (false, false, false);
    for level in 0..MAX_CGROUP_DEPTH {
        let id = ancestor(level);
        if id == 0 {
            break;
        }
        // SAFETY: the value is one aligned word, read once.
        match unsafe { SCOPE.get(id) } {
            Some(&policy) if policy == Policy::Exclude as u32 => return Err(Counter::Excluded),
            Some(&policy) if policy == Policy::SelectAll as u32 => return Ok(()),
            Some(&policy) if policy == Policy::Open as u32 => open = true,
            Some(&policy) => {
                selected |= policy == Policy::Select as u32;
                open = false;
            }
            None => {
                undecided |= open;
                open = false;
            }
        }
    }
    match (selected, undecided) {
        (true, _) => Ok(()),
        (false, true) => Err(Counter::Undecided),
        (false, false) => Err(Counter::NotSelected),
    }
}
