//! The configuration file, and its drop-in directory: text in, settings with their places out. It
//! knows TOML, and no key.
//!
//! The only owner of toml.

use std::{
    fmt, fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

/// What stands in a file.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    text: String,
}

/// Where something stands in a file.
#[derive(Clone, Debug)]
pub struct Place {
    source: Arc<Source>,
    span: Range<usize>,
}

/// A key and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where it stands.
    pub at: Place,
    /// Its value.
    pub value: Value,
}

/// A value of a file.
#[derive(Clone, Debug)]
pub struct Value {
    /// What it says.
    pub said: Said,
    /// Where it stands.
    pub at: Place,
}

/// What a value says.
#[derive(Clone, Debug)]
pub enum Said {
    /// In quotes.
    Text(String),
    /// A whole number.
    Number(String),
    /// True or false.
    Switch(bool),
    /// In brackets.
    List(Vec<Value>),
    /// Keys and values.
    Table(Vec<Entry>),
    /// A fraction or a date, which no key wants.
    Other(&'static str),
}

/// Something in a file that cannot be. Always the operator's to mend.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// Where.
    pub at: Place,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Why files cannot be used. Always the operator's to mend.
#[derive(Debug)]
pub enum FileError {
    /// It cannot be read.
    Io {
        /// Which.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
    /// Its contents, all that is wrong with them.
    Mistakes(Vec<Mistake>),
}

/// Reads a file and then its drop-ins, each as the entries in it, in their order.
///
/// # Errors
/// Something cannot be read or is not TOML.
pub fn read(path: &Path) -> Result<Vec<Vec<Entry>>, FileError> {
    let mut files = vec![path.to_owned()];
    files.extend(drop_ins(path)?);
    files.into_iter().map(read_one).collect()
}

/// Where the drop-ins of a file are.
pub fn drop_in_dir(path: &Path) -> PathBuf {
    let mut dir = path.as_os_str().to_owned();
    dir.push(".d");
    dir.into()
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    let dir = drop_in_dir(path);
    let failed = |source| FileError::Io { path: dir.clone(), source };
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.map_err(failed)?;
    // Editors' backups and Kubernetes' `..data` begin with a dot.
    let is_hidden =
        |path: &PathBuf| path.file_name().is_none_or(|n| n.as_encoded_bytes()[0] == b'.');
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "toml") && !is_hidden(path));
    paths.sort_unstable();
    Ok(paths)
}

fn read_one(path: PathBuf) -> Result<Vec<Entry>, FileError> {
    match fs::read_to_string(&path) {
        Ok(text) => parse(path, text).map_err(FileError::Mistakes),
        Err(source) => Err(FileError::Io { path, source }),
    }
}

/// The entries of one file, or all that is wrong with it.
fn parse(path: PathBuf, text: String) -> Result<Vec<Entry>, Vec<Mistake>> {
    let source = Arc::new(Source { path, text });
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    if errors.is_empty() {
        return Ok(entries(&source, table.get_ref()));
    }
    let mistake = |error: &Error| {
        let end = source.text.len();
        let at = Place { source: Arc::clone(&source), span: error.span().unwrap_or(end..end) };
        Mistake { at, problem: error.message().replace('\n', "; ") }
    };
    let mut mistakes: Vec<_> = errors.iter().map(mistake).collect();
    mistakes.sort_by_key(|mistake| mistake.at.span.start);
    Err(mistakes)
}

fn entries(source: &Arc<Source>, table: &DeTable<'_>) -> Vec<Entry> {
    let place = |span| Place { source: Arc::clone(source), span };
    let mut entries: Vec<_> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            at: place(key.span()),
            value: self::value(source, value),
        })
        .collect();
    entries.sort_by_key(|entry| entry.at.span.start);
    entries
}

fn value(source: &Arc<Source>, value: &Spanned<DeValue<'_>>) -> Value {
    let said = match value.get_ref() {
        DeValue::String(text) => Said::Text(text.to_string()),
        // A number in another base is the same number.
        DeValue::Integer(number) => Said::Number(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
        ),
        DeValue::Boolean(on) => Said::Switch(*on),
        DeValue::Array(values) => {
            Said::List(values.iter().map(|value| self::value(source, value)).collect())
        }
        DeValue::Table(table) => Said::Table(entries(source, table)),
        DeValue::Float(_) => Said::Other("a fraction"),
        DeValue::Datetime(_) => Said::Other("a date"),
    };
    Value { said, at: Place { source: Arc::clone(source), span: value.span() } }
}

impl Place {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// What is wrong here.
    pub fn mistake(&self, problem: impl Into<String>) -> Mistake {
        Mistake { at: self.clone(), problem: problem.into() }
    }

    /// Line, column and the line itself, counted from 1 in characters.
    fn line(&self) -> (usize, usize, &str) {
        let text = &self.source.text;
        let is_boundary = |at: &usize| text.is_char_boundary(*at);
        let start = (0..=self.span.start).rev().find(is_boundary).unwrap_or_default();
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let number = text[..start].matches('\n').count() + 1;
        let column = text[line_start..start].chars().count() + 1;
        (number, column, text[line_start..].lines().next().unwrap_or_default())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column, _) = self.line();
        write!(f, "{}:{line}:{column}", self.source.path.display())
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, column, line) = self.at.line();
        let width =
            self.at.source.text.get(self.at.span.clone()).map_or(1, |text| {
                text.lines().next().map_or(1, |first| first.chars().count().max(1))
            });
        let gutter = number.to_string().len();
        writeln!(f, "{}: {}", self.at, self.problem)?;
        writeln!(f, " {number} | {line}")?;
        // Tabs stay tabs, so that the mark is below what it marks.
        let before = line.chars().take(column - 1);
        let before: String = before.map(|c| if c == '\t' { c } else { ' ' }).collect();
        write!(f, " {:gutter$} | {before}{}", "", "^".repeat(width))
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, source } => write!(f, "--config {}: {source}", path.display()),
            Self::Mistakes(mistakes) => {
                let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
                f.write_str(&all.join("\n"))
            }
        }
    }
}

impl std::error::Error for FileError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_shown_where_it_stands() {
        let mistakes = parse("a.toml".into(), "ok = 1\n\t\"ü\" = oops\n".to_owned());
        let shown = mistakes.expect_err("no TOML")[0].to_string();
        assert!(shown.starts_with("a.toml:2:8: "), "{shown}");
        assert!(shown.ends_with("\n 2 | \t\"ü\" = oops\n   | \t      ^^^^"), "{shown}");
    }

    #[test]
    fn drop_ins_come_after_the_file_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("conf.toml");
        fs::write(&file, "a = 1").expect("writable");
        fs::create_dir(drop_in_dir(&file)).expect("writable");
        for name in ["20-b.toml", "10-a.toml", "README", ".hidden.toml", "c.toml~"] {
            fs::write(drop_in_dir(&file).join(name), "b = 2\nc = 3").expect("writable");
        }
        let files = read(&file).expect("readable");
        let of = |entries: &Vec<Entry>| entries[0].at.path().file_name().map(ToOwned::to_owned);
        let names: Vec<_> = files.iter().filter_map(of).collect();
        assert_eq!(names, ["conf.toml", "10-a.toml", "20-b.toml"]);
        let keys: Vec<_> = files[1].iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["b", "c"]);
    }
}
