//! Flags as keys of the configuration file: the same names, the same values, the same words about
//! what is wrong with them.

use clap::{
    Arg, ArgAction, Command,
    builder::ValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
    value_parser,
};

use super::file::{Mistake, Said, Value};

/// How alike a word must be to be taken for what was meant (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.8;

/// A flag that is a key too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'a>(pub(super) &'a Arg);

/// What kind of value a key has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// True or false.
    Switch,
    /// A whole number.
    Number,
    /// Text, or a number that is read as such.
    Text,
    /// Several texts; one may stand without brackets.
    List,
}

/// The keys of a command's flags, but for the one that names the file and those that are no settings.
pub(super) fn keys(command: &Command) -> impl Iterator<Item = Key<'_>> {
    let is_key = |arg: &&Arg| {
        let takes_part =
            matches!(arg.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue);
        takes_part && arg.get_long().is_some_and(|long| long != "config")
    };
    command.get_arguments().filter(is_key).map(Key)
}

/// The word that was probably meant; a number is not likely to be another one.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.replace('-', "_").to_lowercase();
    let scored = known.map(|known| (strsim::jaro_winkler(&word, known), known));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b));
    let is_word = word.contains(|c: char| c.is_ascii_alphabetic());
    best.filter(|(alike, _)| is_word && *alike >= ALIKE).map(|(_, known)| known)
}

/// Says that a key is not known.
pub(super) fn unknown<'a>(key: &str, whose: &str, known: impl Iterator<Item = &'a str>) -> String {
    // A file names no other, nor is that another word for one of Kubernetes.
    match nearest(key, known).filter(|_| key != "config") {
        Some(known) => format!("`{key}` is no key {whose}; did you mean `{known}`?"),
        None => {
            format!("`{key}` is no key {whose}; `dns-proxy run --help` lists all, with `-` for `_`")
        }
    }
}

impl<'a> Key<'a> {
    /// Its name in the file.
    pub(super) fn name(self) -> String {
        self.long().replace('-', "_")
    }

    pub(super) fn long(self) -> &'a str {
        self.0.get_long().unwrap_or_default()
    }

    pub(super) fn kind(self) -> Kind {
        let parser = self.0.get_value_parser().type_id();
        let numbers = [
            ValueParser::new(value_parser!(u8)).type_id(),
            ValueParser::new(value_parser!(u16)).type_id(),
            ValueParser::new(value_parser!(u32)).type_id(),
            ValueParser::new(value_parser!(u64)).type_id(),
        ];
        let action = self.0.get_action();
        if matches!(action, ArgAction::SetTrue) {
            Kind::Switch
        } else if matches!(action, ArgAction::Append) {
            Kind::List
        } else if numbers.contains(&parser) {
            Kind::Number
        } else {
            Kind::Text
        }
    }

    /// The arguments that say what a value says.
    pub(super) fn read<'v>(self, value: &'v Value) -> Result<Vec<String>, Vec<Mistake>> {
        let texts = match (self.kind(), &value.said) {
            (Kind::Switch, Said::Switch(on)) => return Ok(vec![on.to_string()]),
            (Kind::Number, Said::Number(text))
            | (Kind::Text, Said::Text(text) | Said::Number(text)) => {
                vec![(text, value)]
            }
            (Kind::List, Said::Text(text)) => vec![(text, value)],
            (Kind::List, Said::List(values)) => {
                let text = |value: &'v Value| match value {
                    Value { said: Said::Text(text), .. } => Ok((text, value)),
                    _ => Err(self.wrong(value, "a text in quotes")),
                };
                values.iter().map(text).collect::<Result<_, _>>().map_err(|wrong| vec![wrong])?
            }
            (Kind::Switch, _) => return Err(vec![self.wrong(value, "true or false")]),
            (Kind::Number, _) => return Err(vec![self.wrong(value, "a whole number")]),
            (Kind::Text, _) => return Err(vec![self.wrong(value, "a text in quotes")]),
            (Kind::List, _) => return Err(vec![self.wrong(value, "a list of texts")]),
        };
        let wrong: Vec<_> = texts
            .iter()
            .filter_map(|(text, value)| Some((self.check(text).err()?, value)))
            .map(|(problem, value)| value.at.mistake(format!("{}: {problem}", self.name())))
            .collect();
        if wrong.is_empty() {
            Ok(texts.into_iter().map(|(text, _)| text.clone()).collect())
        } else {
            Err(wrong)
        }
    }

    fn wrong(self, value: &Value, wanted: &str) -> Mistake {
        let found = match &value.said {
            Said::Text(_) => "a text",
            Said::Number(_) => "a number",
            Said::Switch(_) => "true or false",
            Said::List(_) => "a list",
            Said::Table(_) => "a table",
            Said::Other(kind) => kind,
        };
        let example = self.example();
        value.at.mistake(format!("{}: wants {wanted}, not {found}{example}", self.name()))
    }

    fn example(self) -> String {
        let default = self.0.get_default_values().first().and_then(|value| value.to_str());
        match (self.kind(), default, self.0.get_value_names()) {
            (Kind::Text, Some(default), _) => format!(", such as \"{default}\""),
            (Kind::List, _, Some([name, ..])) => format!(": [\"{name}\", ...]"),
            _ => String::new(),
        }
    }

    /// Whether the flag takes this value, or why not, in the flag's words.
    pub(super) fn check(self, text: &str) -> Result<(), String> {
        if self.0.get_value_delimiter().is_some_and(|comma| text.contains(comma)) {
            return Err(format!("`{text}` has a comma; write each value for itself"));
        }
        let alone = Command::new("file").no_binary_name(true).arg(self.0.clone());
        let argument = format!("--{}={text}", self.long());
        let Err(error) = alone.try_get_matches_from([argument]) else {
            return Ok(());
        };
        let possible = match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(values)) => values.as_slice(),
            _ => &[],
        };
        Err(match (error.kind(), std::error::Error::source(&error)) {
            (ErrorKind::InvalidValue, _) if !possible.is_empty() => {
                let list: Vec<_> = possible.iter().map(|value| format!("`{value}`")).collect();
                let meant = nearest(text, possible.iter().map(String::as_str));
                let meant = meant.map(|meant| format!("; did you mean `{meant}`?"));
                format!("`{text}` is none of {}{}", list.join(", "), meant.unwrap_or_default())
            }
            (_, Some(source)) => {
                let said = source.to_string();
                // What does not name the value is of no use in a list.
                if said.contains(text) { said } else { format!("`{text}`: {said}") }
            }
            (_, None) => format!("`{text}` will not do"),
        })
    }
}
