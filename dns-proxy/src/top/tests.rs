use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    style::Color,
};

use super::{
    model::{Flow, Model, Order},
    screen,
};
use crate::{
    control::identity::Identity,
    observe::tally::{Asker, Count, Name, Sums},
    status::example,
};

fn sums(queries: u64, cached: u64, plaintext: u64) -> Sums {
    let encrypted = queries - cached - plaintext;
    Sums {
        queries,
        encrypted,
        cached,
        plaintext,
        latency_ms: encrypted as f64 * 9.5,
        ..Sums::default()
    }
}

fn asker(path: &str, name: &str, sums: Sums) -> Asker {
    let who = Identity { name: name.to_owned(), ..Identity::of_path(path) };
    Asker { who: Some(who), client: None, sums }
}

fn count() -> Count {
    let id = "0123456789abcdef".repeat(4);
    let name = |name: &str, sums| Name { name: name.to_owned(), sums };
    Count {
        seconds: 1.0,
        status: example(),
        askers: vec![
            asker(&format!("/docker/{id}"), "web", sums(812, 700, 0)),
            asker(&format!("/docker/{}", id.replace('0', "f")), "worker", sums(55, 20, 3)),
            asker("/system.slice/nginx.service", "nginx.service", sums(4, 4, 0)),
        ],
        names: vec![
            name("api.example.com", sums(600, 590, 0)),
            name("db.internal", sums(3, 0, 3)),
            name("cdn.example.net", sums(120, 80, 0)),
        ],
        plaintext: Vec::new(),
        missed: 0,
    }
}

fn model() -> Model {
    let mut model = Model::new(true);
    for latency in [9.0, 11.0, 10.0, 24.0, 12.0] {
        let mut count = count();
        count.status.upstreams[0].latency_seconds = Some(latency / 1e3);
        model.counted(count);
    }
    model
}

fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        let code = if key == '\n' { KeyCode::Enter } else { KeyCode::Char(key) };
        assert_eq!(model.key(KeyEvent::new(code, KeyModifiers::NONE)), Flow::On);
    }
}

fn drawn(model: &Model, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("no terminal at all");
    terminal.draw(|frame| screen::draw(frame, model)).expect("drawn");
    terminal
}

fn text(model: &Model, width: u16, height: u16) -> String {
    let terminal = drawn(model, width, height);
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(width.into());
    let line = |row: &[ratatui::buffer::Cell]| {
        row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
            + "\n"
    };
    rows.map(line).collect()
}

#[test]
fn it_fits_any_terminal() {
    let model = model();
    for (width, height) in [(1, 1), (24, 5), (40, 10), (80, 24), (200, 60), (300, 3)] {
        let text = text(&model, width, height);
        if width >= 40 && height >= 10 {
            for wanted in ["dns-proxy", "web", "worker", "q quit"] {
                assert!(text.contains(wanted), "no {wanted} at {width}x{height}:\n{text}");
            }
        }
    }
}

#[test]
fn rows_are_sorted_filtered_and_kept_when_nothing_is_asked() {
    let mut model = model();
    let first = |model: &Model| model.askers()[0].name.clone();
    assert_eq!(first(&model), "web");
    press(&mut model, "ss");
    assert_eq!((model.order, first(&model)), (Order::Plaintext, "worker".to_owned()));
    press(&mut model, "sss");
    assert_eq!((model.order, first(&model)), (Order::Name, "nginx.service".to_owned()));
    press(&mut model, "/WEB\n");
    assert_eq!((model.askers().len(), model.names().len()), (1, 0));
    assert_eq!(model.key(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE)), Flow::On);
    assert_eq!(model.askers().len(), 3);
    model.counted(Count { askers: Vec::new(), ..count() });
    assert_eq!((model.askers().len(), model.askers()[0].rate()), (3, 0.0));
    press(&mut model, "p");
    model.counted(count());
    assert_eq!(model.askers()[0].rate(), 0.0, "paused");
    for key in [KeyCode::Char('q'), KeyCode::Esc] {
        assert_eq!(model.key(KeyEvent::new(key, KeyModifiers::NONE)), Flow::End);
    }
}

#[test]
fn plaintext_is_red_and_bold_without_colours() {
    for (colours, expected) in [(true, Color::Red), (false, Color::Reset)] {
        let mut model = model();
        model.colours = colours;
        let terminal = drawn(&model, 120, 30);
        let buffer = terminal.backend().buffer();
        let bold: String = buffer
            .content()
            .iter()
            .filter(|cell| cell.style().add_modifier.contains(ratatui::style::Modifier::BOLD))
            .filter(|cell| cell.fg == expected)
            .map(ratatui::buffer::Cell::symbol)
            .collect();
        assert!(bold.contains("17 plaintext by route"), "{bold}");
    }
}

/// The screens in the README are those that are drawn.
#[test]
fn the_readme_shows_it_as_it_is() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let mut readme_text = std::fs::read_to_string(readme).expect("a README");
    let screens = [
        ("dns-proxy status", crate::status::text::page(&example())),
        ("dns-proxy top", text(&model(), 88, 18)),
    ];
    for (command, screen) in screens {
        let start = format!("```text\n$ sudo {command}\n");
        let at = readme_text.find(&start).expect("its screen") + start.len();
        let end = at + readme_text[at..].find("```").expect("the end of it");
        if std::env::var_os("UPDATE_SCREENS").is_some() {
            readme_text.replace_range(at..end, &screen);
            continue;
        }
        assert_eq!(&readme_text[at..end], screen, "run this test with UPDATE_SCREENS=1");
    }
    if std::env::var_os("UPDATE_SCREENS").is_some() {
        std::fs::write(readme, readme_text).expect("written");
    }
}
