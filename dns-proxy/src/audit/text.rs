//! An audit as a page for people.

use std::fmt::Write as _;

use super::Audit;
use crate::{escape::plain, status::text::number};

/// The page.
pub fn page(audit: &Audit) -> String {
    let mut page = format!(
        "dns-proxy {} from {} to {}\nscope {}; guard {}, fail {}\n\n",
        audit.version,
        audit.from,
        audit.until,
        plain(&audit.scopes.join(" ")),
        audit.guard.as_deref().unwrap_or("-"),
        audit.fail,
    );
    let columns = ["queries", "encrypted", "cached", "local", "plaintext", "failed"];
    let _ = write!(page, "{:<40}", "who");
    columns.iter().for_each(|column| _ = write!(page, "{column:>11}"));
    page.push('\n');
    for asker in &audit.askers {
        let sums = &asker.sums;
        let _ = write!(page, "{:<40}", asker.name());
        for sum in
            [sums.queries, sums.encrypted, sums.cached, sums.local, sums.plaintext, sums.failed]
        {
            let _ = write!(page, "{:>11}", number(sum));
        }
        page.push('\n');
    }
    let counters = &audit.counters;
    let _ = writeln!(
        page,
        "\n{} intercepted, {} encrypted, {} cached, {} plaintext by route, {} refused, {} guarded\n",
        number(counters.intercepted),
        number(counters.encrypted),
        number(counters.cached),
        number(counters.plaintext_by_route),
        number(counters.refused),
        number(counters.guarded),
    );
    for check in &audit.checks {
        let verdict = if check.holds { "ok  " } else { "FAIL" };
        let _ = writeln!(page, "{verdict}  {}: {}", check.what, plain(&check.why));
    }
    for example in &audit.wire.examples {
        let _ = writeln!(page, "      {example}");
    }
    if audit.wire.unwatched > 0 {
        let _ = writeln!(
            page,
            "\nNot watched on the wire: {} namespaces that others use too, as the host's, or that \
             nobody is in; for these the kernel's counters speak.",
            audit.wire.unwatched
        );
    }
    let verdict = if audit.clean { "CLEAN: nothing leaked" } else { "NOT CLEAN" };
    let _ = writeln!(page, "\n{verdict}");
    page
}
