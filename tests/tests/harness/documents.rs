//! Documents say which test holds a claim up; such a test must exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Every `module::a_test_named_as_a_sentence` between backquotes.
fn named_tests(document: &str) -> impl Iterator<Item = &str> {
    let quoted = document.split('`').skip(1).step_by(2);
    quoted.filter(|text| {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let parts: Vec<_> = text.split("::").collect();
        let is_path = parts.iter().all(|part| !part.is_empty() && part.chars().all(is_word));
        // A sentence has more than one word; others are modules.
        is_path && parts.len() > 1 && parts.last().is_some_and(|name| name.contains('_'))
    })
}

fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|of| of == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Every test of the test programs, as `module::name`.
fn tests_there_are(dir: &Path) -> Result<BTreeSet<String>> {
    let mut tests = BTreeSet::new();
    for file in files(dir, "rs")? {
        let module = file.file_stem().and_then(|stem| stem.to_str()).context("a plain name")?;
        let parent = file.parent().and_then(Path::file_name).and_then(|dir| dir.to_str());
        let source = fs::read_to_string(&file)?;
        let functions = source.lines().filter_map(|line| {
            let (name, _) = line.trim_start().strip_prefix("fn ")?.split_once("()")?;
            Some(name.to_owned())
        });
        for name in functions {
            tests.insert(format!("{module}::{name}"));
            tests.extend(parent.map(|parent| format!("{parent}::{module}::{name}")));
        }
    }
    Ok(tests)
}

#[test]
fn every_test_that_a_document_names_exists() -> Result<()> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tests = tests_there_are(&project.join("tests/tests"))?;
    let mut named = 0;
    for document in files(&project.join("docs"), "md")? {
        let text = fs::read_to_string(&document)?;
        for name in named_tests(&text) {
            named += 1;
            ensure!(tests.contains(name), "{}: there is no test {name}", document.display());
        }
    }
    ensure!(named > 50, "only {named} tests found in docs/");
    Ok(())
}
