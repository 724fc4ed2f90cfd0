//! How it looks, on a terminal of any size.

use std::iter::once;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Paragraph, Row as TableRow, Table},
};

use super::model::{Model, Row};
use crate::{
    escape::plain,
    status::{
        Status, UpstreamState,
        text::{number, octets, span},
    },
};

/// Below this there is no telling anything.
const SMALLEST: (u16, u16) = (24, 5);
/// Latencies are shown by these.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let area = frame.area();
    let Some(status) = &model.status else {
        return frame.render_widget("waiting for the daemon ...", area);
    };
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        return frame.render_widget("too small", area);
    }
    let upstreams = status.upstreams.len().min(usize::from(area.height) / 4) as u16;
    let upstreams = if area.height >= 14 { upstreams + 1 } else { 0 };
    let [head, servers, tables, keys] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(upstreams),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(summary(model, status)), head);
    if upstreams > 0 {
        frame.render_widget(servers_table(model, status, servers.width), servers);
    }
    // Beside each other where there is room, else one above the other, else askers alone.
    let (askers, names) = if tables.width >= 110 {
        let [left, right] = Layout::horizontal([Constraint::Percentage(58), Constraint::Min(1)])
            .spacing(2)
            .areas(tables);
        (left, Some(right))
    } else if tables.height >= 10 {
        let [upper, lower] =
            Layout::vertical([Constraint::Percentage(50), Constraint::Min(1)]).areas(tables);
        (upper, Some(lower))
    } else {
        (tables, None)
    };
    frame.render_widget(rows_table(model, "who", &model.askers(), askers), askers);
    if let Some(names) = names {
        frame.render_widget(rows_table(model, "name", &model.names(), names), names);
    }
    frame.render_widget(Paragraph::new(footer(model)), keys);
}

fn style(model: &Model, colour: Color, modifier: Modifier) -> Style {
    let style = Style::default().add_modifier(modifier);
    if model.colours { style.fg(colour) } else { style }
}

/// What must catch the eye, also of who sees no colours.
fn alarm(model: &Model) -> Style {
    style(model, Color::Red, Modifier::BOLD)
}

fn heading(model: &Model) -> Style {
    style(model, Color::Cyan, Modifier::BOLD)
}

fn summary<'a>(model: &Model, status: &Status) -> Vec<Line<'a>> {
    let counters = &status.counters;
    let title = Line::from(vec![
        Span::styled(format!("dns-proxy {}", status.version), heading(model)),
        Span::raw(format!(
            "  pid {}  up {}  {:.0} queries/s",
            status.pid,
            span(status.at.since(status.since)),
            model.rate,
        )),
        Span::styled(if model.is_paused { "  PAUSED" } else { "" }, alarm(model)),
    ]);
    let leak = match counters.plaintext_by_leak {
        Some(0) => Span::raw("0 leaked"),
        Some(leaked) => Span::styled(format!("{} LEAKED", number(leaked)), alarm(model)),
        None if status.guard.is_some() => Span::styled("leaks unknown", alarm(model)),
        None => Span::raw("nothing intercepted"),
    };
    let route = format!("{} plaintext by route", number(counters.plaintext_by_route));
    let by_route = if counters.plaintext_by_route > 0 { alarm(model) } else { Style::default() };
    let queries = Line::from(vec![
        Span::raw(format!(
            "{} intercepted, {} encrypted, ",
            number(counters.intercepted),
            number(counters.encrypted)
        )),
        leak,
        Span::raw(", "),
        Span::styled(route, by_route),
        Span::raw(format!(", {} refused", number(counters.refused))),
    ]);
    let cache = &status.cache;
    let hits = model.hit_rate.map_or("-".to_owned(), |rate| format!("{:.0} %", rate * 100.0));
    let mut last = vec![Span::raw(match cache.size {
        0 => "cache off".to_owned(),
        size => format!(
            "cache {hits} hits, {} of {}, {} answers",
            octets(cache.used),
            octets(size),
            number(cache.names)
        ),
    })];
    if let Some(warning) = status.warnings.first() {
        let more = match status.warnings.len() {
            1 => String::new(),
            all => format!(" (and {} more: dns-proxy status)", all - 1),
        };
        last.push(Span::styled(format!("  ! {}{more}", plain(&warning.what)), alarm(model)));
    }
    vec![title, queries, Line::from(last)]
}

fn servers_table<'a>(model: &Model, status: &Status, width: u16) -> Table<'a> {
    let rows = status.upstreams.iter().map(|upstream| {
        let (state, is_well) = match upstream.state {
            UpstreamState::Up => ("up", true),
            UpstreamState::Idle => ("idle", true),
            UpstreamState::Silent => ("SILENT", false),
            UpstreamState::Failed => ("FAILED", false),
        };
        let style = if is_well { Style::default() } else { alarm(model) };
        let latency = upstream.latency_seconds;
        let latency = latency.map_or("-".to_owned(), |latency| format!("{:.1} ms", latency * 1e3));
        let who = upstream.name.as_ref().unwrap_or(&upstream.address);
        TableRow::new(vec![
            Cell::from(plain(who)),
            Cell::from(Span::styled(state, style)),
            figure(latency),
            Cell::from(sparkline(model.latencies(&upstream.address))),
            figure(number(upstream.answers)),
            figure(number(upstream.failures)),
        ])
    });
    let spark = if width >= 70 { 20 } else { 0 };
    let widths = [
        Constraint::Min(10),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(spark),
        Constraint::Length(9),
        Constraint::Length(8),
    ];
    let titles = [Cell::from("upstream"), Cell::from("state"), figure("latency"), Cell::from("")]
        .into_iter()
        .chain(["answers", "failures"].map(figure));
    Table::new(rows, widths).header(TableRow::new(titles).style(heading(model)))
}

/// A number, whose end is where all ends are.
fn figure<'a>(text: impl Into<std::borrow::Cow<'a, str>>) -> Cell<'a> {
    Cell::from(Line::from(text.into()).right_aligned())
}

/// The last latencies, the slowest as high as it gets.
fn sparkline(latencies: impl DoubleEndedIterator<Item = f64>) -> String {
    let mut last: Vec<_> = latencies.rev().take(20).collect();
    last.reverse();
    let highest = last.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let bar = |latency: &f64| BARS[((latency / highest * 7.0) as usize).min(7)];
    last.iter().map(bar).collect()
}

fn rows_table<'a>(model: &Model, what: &'static str, rows: &[&Row], area: Rect) -> Table<'a> {
    let is_wide = area.width >= 60;
    // The first column takes what there is.
    let (lengths, titles): (&[u16], &[&str]) = if is_wide {
        (&[7, 9, 9, 9, 7, 7], &["/s", "total", "cached", "plain", "failed", "ms"])
    } else {
        (&[5, 7, 6], &["/s", "total", "plain"])
    };
    let others: u16 = lengths.iter().map(|length| length + 1).sum();
    let room = usize::from(area.width.saturating_sub(others));
    let shown = rows.iter().skip(model.scrolled.min(rows.len().saturating_sub(1)));
    let shown = shown.take(usize::from(area.height)).map(|row| {
        let loud = |count: u64| {
            let style = if count > 0 { alarm(model) } else { Style::default() };
            figure(number(count)).style(style)
        };
        let mut cells =
            vec![Cell::from(fitted(&row.name, room)), figure(format!("{:.0}", row.rate()))];
        cells.push(figure(number(row.total.queries)));
        if is_wide {
            cells.push(figure(number(row.total.cached)));
        }
        cells.push(loud(row.total.plaintext));
        if is_wide {
            cells.push(figure(number(row.total.failed)));
            cells.push(figure(format!("{:.1}", row.latency())));
        }
        TableRow::new(cells)
    });
    let titles = titles.iter().map(|title| figure(*title));
    let titles = TableRow::new(once(Cell::from(what)).chain(titles)).style(heading(model));
    let widths = lengths.iter().map(|length| Constraint::Length(*length));
    let widths = once(Constraint::Min(8)).chain(widths);
    Table::new(shown, widths).header(titles).block(Block::default().borders(Borders::TOP))
}

/// The text, or as much of its end as there is room for: of a path that says most.
fn fitted(text: &str, room: usize) -> String {
    match text.chars().count().checked_sub(room) {
        None | Some(0) => text.to_owned(),
        Some(beyond) => once('…').chain(text.chars().skip(beyond + 1)).collect(),
    }
}

fn footer<'a>(model: &Model) -> Line<'a> {
    if model.is_typing {
        return Line::from(format!("/{}_", model.filter));
    }
    let mut text = format!("q quit  s sort: {}  / filter", model.order.name());
    if !model.filter.is_empty() {
        text.push_str(&format!(": {}", model.filter));
    }
    text.push_str("  p pause  ↑↓ scroll");
    if model.missed > 0 {
        text.push_str(&format!("  {} not counted", number(model.missed)));
    }
    Line::from(text)
}
